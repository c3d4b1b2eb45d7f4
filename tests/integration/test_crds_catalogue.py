"""The catalogue of the parameters of datasets in a bucket."""

from __future__ import annotations

import threading

import pytest

from caldp.crdserver.datasets import Datasets, import_headers
from caldp.s3_store import S3Store
from tests.s3 import S3Place, s3_places

COS = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2014-01-24", "TIME-OBS": "07:14:45.213332"}


@pytest.mark.parametrize("s3_place", s3_places(), indirect=True)
def test_importers_into_a_bucket_at_once_lose_nothing(s3_place: S3Place) -> None:
    settings = {name: value for name, value in s3_place.environment().items() if name.startswith("AWS_")}
    start = threading.Barrier(3)
    failed: list[BaseException] = []

    def bring(number: int) -> None:
        try:
            store = S3Store(s3_place.outputs, settings)
            start.wait()
            import_headers(store, "hst", [(f"L{number}{one:06}Q", COS) for one in range(40)])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=bring, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store = S3Store(s3_place.outputs, settings)
    catalogue = Datasets(store, "hst")
    assert catalogue.instruments() == ["cos"] and len(catalogue.ids("cos")) == 120
    assert catalogue.headers(["L1000007Q"]) == {"L1000007Q:L1000007Q": COS}
    # The table, the one before, and the record: what came too late is gone.
    assert len(list(store.walk("datasets"))) == 3
