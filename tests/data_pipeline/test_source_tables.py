"""Tables of public data sets, as spreadsheets save them, and their ages."""

import math

import pytest

from data_pipeline.adapters.chexpert import read_chexpert
from data_pipeline.adapters.rsna_bone_age import read_rsna_bone_age
from data_pipeline.adapters.source_tables import OLDEST_CHILD_MONTHS, ages_in_months
from data_pipeline.errors import DataError


class TestTablesFromSpreadsheets:
    """RSNA's, as an example: all adapters read tables alike."""

    def _read(self, tmp_path, text):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / "1.png").touch()
        (tmp_path / "t.csv").write_text(text)
        return read_rsna_bone_age(str(tmp_path))

    @pytest.mark.parametrize(
        "text",
        [
            "id;boneage;male\n1;10,5;True\n",
            "sep=;\nid;boneage;male\n1;10,5;True\n",
            "id,boneage,male\n1.0,10.5,True\n",
            "id\tboneage\tmale\n1\t10.5\tTrue\n",
            "\ufeffid,boneage,male,\r\n1,10.5,True\r\n",
        ],
    )
    def test_separators_and_decimal_commas(self, tmp_path, text):
        records = self._read(tmp_path, text)
        assert records.age_months.tolist() == [10.5]
        assert records.sex.tolist() == ["M"]

    def test_what_no_file_system_takes_is_not_on_disk(self, tmp_path, caplog):
        """Names with null bytes, or too long, in a damaged table."""
        for folder in ("p" + "9" * 300, "p\0"):
            text = f"Path,Sex,Age\nC/{folder}/patient1/s/v.jpg,F,30\nC/patient2/s/v.jpg,F,30\n"
            (tmp_path / "train.csv").write_text(text)
            (tmp_path / "patient2" / "s").mkdir(parents=True, exist_ok=True)
            (tmp_path / "patient2" / "s" / "v.jpg").touch()
            assert len(read_chexpert(str(tmp_path))) == 1
        assert "1 of 2 images listed are not on disk" in caplog.text

    def test_shortened_ids_are_named(self, tmp_path, caplog):
        self._read(tmp_path, "id,boneage,male\n1,10,True\n1.23457E+11,9,True\n")
        assert "column id: a spreadsheet has rewritten 1 values, such as '1.23457E+11'" in (
            caplog.text
        )

    def test_a_table_cut_short_is_refused(self, tmp_path, caplog):
        with pytest.raises(DataError, match=r"t\.csv ends within a row .*cut short"):
            self._read(tmp_path, "id,boneage,male\n1,10,True\n2,1")
        with pytest.raises(DataError, match="cannot be read as CSV"):
            self._read(tmp_path, 'id,boneage,male\n1,10,"True\n2,1,True\n')
        self._read(tmp_path, "id,boneage,male\n2,9\n1,10,True\n")
        assert "1 of 2 rows have fewer values than the header" in caplog.text


def test_zero_whole_years_of_a_child_are_unknown(caplog):
    infants = ages_in_months("x", ["0", "2", "0y", "3 months"], 12, OLDEST_CHILD_MONTHS)
    assert [age for age in infants if not math.isnan(age)] == [24, 3]
    assert "x: 2 ages are taken as unknown, such as '0', '0y'" in caplog.text
    assert ages_in_months("x", ["0", "0.5"], 12, OLDEST_CHILD_MONTHS) == [0, 6]
    assert ages_in_months("x", ["0", "57"], 12) == [
        0,
        57 * 12,
    ]  # To be left out of a set of adults.
