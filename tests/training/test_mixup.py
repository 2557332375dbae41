"""MixUp against its formula, with labels that are partly unknown."""

import jax
import jax.numpy as jnp
import numpy as np

from infantxray.training import losses, mixup

SIZE, CLASSES = 6, 3


def make_mixing():
    return mixup.draw(jax.random.key(3), SIZE, 0.4)


def test_pairs_are_a_permutation_and_shares_follow_the_beta_distribution():
    mixing = make_mixing()
    assert sorted(mixing.partner.tolist()) == list(range(SIZE))
    share = np.asarray(mixup.draw(jax.random.key(0), 20_000, 0.4).share)
    assert ((share >= 0) & (share <= 1)).all()
    # Beta(α, α): mean 1/2, variance 1 / (4 (2α + 1)).
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(share.var(), 1 / (4 * 1.8), atol=0.005)


def test_images_are_weighted_means():
    image = np.random.default_rng(0).random((SIZE, 2, 2, 1)).astype(np.float32)
    mixing = make_mixing()
    mixed = mixing.mix(jnp.asarray(image))
    for i, (j, share) in enumerate(zip(mixing.partner, mixing.share, strict=True)):
        np.testing.assert_allclose(mixed[i], share * image[i] + (1 - share) * image[j], rtol=1e-6)


def test_the_sum_over_known_labels_is_that_of_mixed_labels():
    """Cross-entropy is linear in the label: the formula of the paper, image by image."""
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(SIZE, CLASSES)), jnp.float32)
    label = rng.integers(0, CLASSES, SIZE)
    mixing = make_mixing()
    terms = mixing.terms(lambda out: {"ce": losses.cross_entropy(out, jnp.asarray(label))}, logits)
    one_hot = np.eye(CLASSES)[label]
    share = np.asarray(mixing.share)[:, None]
    target = share * one_hot + (1 - share) * one_hot[np.asarray(mixing.partner)]
    expected = -(target * np.asarray(jax.nn.log_softmax(logits))).sum()
    np.testing.assert_allclose(terms["ce"].sum(), expected, rtol=1e-5)


def test_a_label_counts_in_its_own_two_mixtures_alone():
    """So that the weight of an unknown label removes all of it, and nothing of its partner."""
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(SIZE, CLASSES)), jnp.float32)
    mixing = make_mixing()

    def value(label):
        return mixing.terms(lambda out: {"ce": losses.cross_entropy(out, label)}, logits)["ce"]

    label = jnp.array([0, 1, 2, 0, 1, 2])
    changed = value(label.at[4].set(0)) != value(label)
    assert changed.tolist() == [False, False, False, False, True, False]
