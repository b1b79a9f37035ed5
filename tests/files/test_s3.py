"""S3: against moto, which knows the whole protocol, and against a server that refuses what the real one refuses."""

import os
import tracemalloc
from collections.abc import Iterator
from uuid import uuid4

import boto3
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from queue_kit.contrib.files import FilesNotDeleted, FileStore, create_or_update_file
from queue_kit.contrib.files.images import MIB
from tests.files.content import LONG, PNG, content, keys, pieces_of
from tests.files.s3 import StrictS3
from tests.files.storing import clean

ACCESS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str):
    """A bucket of its own, as S3's own library sees it, and the store on it."""
    name = f"bucket-{uuid4().hex[:8]}"
    client = boto3.client("s3", endpoint_url=moto, **ACCESS)
    client.create_bucket(Bucket=name)
    objects = S3Store(
        name,
        endpoint=moto,
        access_key_id="test",
        secret_access_key="test",  # pragma: allowlist secret
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    yield client, name, FileStore(objects, part_bytes=5 * MIB)
    client.close()


async def test_long_and_short_contents_go_to_s3_and_come_back(bucket):
    client, name, store = bucket
    short, long = await store.write(PNG), await store.write(pieces_of(LONG))
    assert await content(store, short.object_key) == PNG
    assert await content(store, long.object_key) == LONG
    assert (
        b"".join([piece async for piece in await store.open(long.object_key, 3 * MIB, 9 * MIB)])
        == LONG[3 * MIB : 9 * MIB]
    )
    assert await keys(store) == {short.object_key, long.object_key}
    # An entity tag with a number of parts: it was uploaded in parts.
    assert "-3" in client.head_object(Bucket=name, Key=long.object_key)["ETag"]
    assert "-" not in client.head_object(Bucket=name, Key=short.object_key)["ETag"]


async def test_an_upload_that_breaks_off_leaves_no_object(bucket):
    client, name, store = bucket

    async def breaking():
        yield os.urandom(11 * MIB)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.write(breaking())
    assert await keys(store) == set()
    assert client.list_multipart_uploads(Bucket=name).get("Uploads") is None


async def test_an_object_that_is_gone_from_s3_is_not_found(bucket):
    _, _, store = bucket
    gone = f"files/{uuid4().hex}"
    with pytest.raises(FileNotFoundError):
        await store.open(gone)
    with pytest.raises(FileNotFoundError):
        await store.open(gone, 0, 1)
    assert await store.delete([gone]) == {}


async def test_the_cleanup_empties_a_bucket_but_for_what_rows_name(files, bucket):
    client, name, store = bucket
    kept = await create_or_update_file(files, store, name="kept", source=PNG)
    for _ in range(5):
        await store.write(b"x")
    client.put_object(Bucket=name, Key="files/readme.txt", Body=b"not ours")
    done = await clean(files, store)
    assert (done.objects, done.deleted) == (6, 5)
    left = {each["Key"] for each in client.list_objects_v2(Bucket=name)["Contents"]}
    assert left == {kept.object_key, "files/readme.txt"}


async def test_ten_thousand_objects_go_in_requests_of_a_thousand_with_flat_memory(files):
    server = StrictS3([f"files/{uuid4().hex}" for _ in range(10_000)])
    async with server.store() as objects:
        store = FileStore(objects)
        tracemalloc.start()
        try:
            done = await clean(files, store)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (done.objects, done.deleted, server.keys) == (10_000, 10_000, [])
    assert server.requests == {"list": 10, "delete": 10}
    assert server.most_deleted == 1_000
    assert peak < 16 * MIB


async def test_each_key_that_s3_refuses_to_delete_is_told_of(files):
    names = [f"files/{uuid4().hex}" for _ in range(1_200)]
    server = StrictS3(names, refused=set(names[:2]))
    async with server.store() as objects:
        with pytest.raises(FilesNotDeleted, match="2 objects could not be deleted") as caught:
            await clean(files, FileStore(objects))
    assert set(caught.value.reasons) == set(names[:2])
    assert server.keys == sorted(names[:2])
