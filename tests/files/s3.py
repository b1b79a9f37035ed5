"""A little S3 that is as strict as the real one where a test server is not: no more than 1,000 keys in a page of a list
or in a request to delete. It counts, and it can refuse to delete."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from aiohttp import web
from aiohttp.test_utils import TestServer
from obstore.store import S3Store

MOST = 1_000


class StrictS3:
    """One bucket, whose objects have no content."""

    def __init__(self, keys: list[str], *, refused: set[str] | None = None) -> None:
        self.keys = sorted(keys)
        self.refused = refused or set()
        self.requests: Counter[str] = Counter()
        self.most_deleted = 0

    @asynccontextmanager
    async def store(self) -> AsyncIterator[S3Store]:
        """The bucket, as obstore sees it."""
        app = web.Application()
        app.router.add_get("/bucket", self._list)
        app.router.add_post("/bucket", self._delete)
        app.router.add_delete("/bucket/{key:.*}", self._delete_one)
        async with TestServer(app) as server:
            yield S3Store(
                "bucket",
                endpoint=str(server.make_url("")).rstrip("/"),
                region="us-east-1",
                skip_signature=True,
                virtual_hosted_style_request=False,
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )

    async def _list(self, request: web.Request) -> web.Response:
        self.requests["list"] += 1
        prefix, after = request.query.get("prefix", ""), request.query.get("continuation-token", "")
        page = [key for key in self.keys if key.startswith(prefix) and key > after][: MOST + 1]
        more, page = len(page) > MOST, page[:MOST]
        written = datetime(2026, 1, 1, tzinfo=UTC).isoformat().replace("+00:00", ".000Z")
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{written}</LastModified><Size>0</Size></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        truncated = str(more).lower()
        return _xml(f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{contents}</ListBucketResult>")

    async def _delete(self, request: web.Request) -> web.Response:
        self.requests["delete"] += 1
        asked = [str(each.text) for each in ET.fromstring(await request.text()).iter() if each.tag.endswith("Key")]
        self.most_deleted = max(self.most_deleted, len(asked))
        if len(asked) > MOST:
            return _xml("<Error><Code>MalformedXML</Code></Error>", status=400)
        self.keys = sorted(set(self.keys) - (set(asked) - self.refused))
        said = "".join(
            f"<Error><Key>{escape(key)}</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
            if key in self.refused
            else f"<Deleted><Key>{escape(key)}</Key></Deleted>"
            for key in asked
        )
        return _xml(f"<DeleteResult>{said}</DeleteResult>")

    async def _delete_one(self, request: web.Request) -> web.Response:
        self.requests["delete one"] += 1
        key = request.match_info["key"]
        if key in self.refused:
            return _xml("<Error><Code>AccessDenied</Code></Error>", status=403)
        self.keys = [each for each in self.keys if each != key]
        return web.Response(status=204)


def _xml(text: str, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status, text=f'<?xml version="1.0" encoding="UTF-8"?>{text}', content_type="application/xml"
    )
