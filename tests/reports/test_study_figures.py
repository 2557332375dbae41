from infantxray.reports import study_figures as figures


def test_a_label_has_the_same_colour_in_all_panels():
    points = [[(1, 0.2), (2, 0.3)]]
    figure = figures.learning(
        {
            "stage one": {"l1": points, "masked hog": points},
            "stage two": {"random": points, "l1": points, "masked hog": points},
        }
    )
    first, second = (
        {line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes
    )
    assert list(second.values()) == [figures.colour(i) for i in range(3)]
    assert {label: second[label] for label in first} == first
