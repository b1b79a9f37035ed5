"""FastAPI: photographs, each sent to a browser as small as it is shown, and as a tiny picture before it is there.

    pip install 'queue-kit[sqlite,files]' fastapi uvicorn
    uvicorn --app-dir examples --factory images:create_app

Open http://localhost:8000 and add some. Files lie in the folder `uploads`, rows in the SQLite file `images.db`; IMAGES
and DATABASE_URL name others. There is nothing else to start: the worker that makes the variants is in the application.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import escape
from uuid import UUID

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from queue_kit import CronJob, QueueWorker, engine_from_url, migrate, register_cron_jobs
from queue_kit.contrib.files import (
    FileStore,
    ImageRefused,
    InvalidFile,
    create_or_update_file,
    delete_file,
    file_jobs,
    get_file,
    transform_file_in_place,
)
from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.starlette import send_transformed_image

ALLOWED = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/gif")
WIDTHS = (256, 384, 640, 1080, 1920)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Prepare the database, then work for as long as the application runs."""
    app.state.engine = engine = engine_from_url(os.environ.get("DATABASE_URL", "sqlite:///images.db"))
    app.state.store = store = FileStore.local(os.environ.get("IMAGES", "uploads"), max_file_bytes=20_000_000)
    await migrate.upgrade(engine, extras=("files",))  # in production a deploy does this, once
    await register_cron_jobs(engine, [CronJob("queue_kit.file.cleanup", "0 2 * * *")])
    async with QueueWorker(engine, file_jobs(store), parallel_count=4):
        yield
    await engine.dispose()


def create_app() -> FastAPI:
    """The application. A real one asks here who somebody is, and whose a file is."""
    app = FastAPI(title="images", lifespan=lifespan)

    @app.post("/images", status_code=201)
    async def add(request: Request, name: str) -> dict[str, str]:
        try:
            file = await create_or_update_file(
                app.state.engine,
                app.state.store,
                name=name,
                source=request.stream(),
                allowed_content_types=ALLOWED,
                schedule_placeholder_image_job=True,
            )
        except InvalidFile as error:
            raise HTTPException(415, str(error)) from None
        return {"id": str(file.id)}

    @app.get("/images/{file_id}")
    async def show(request: Request, file_id: UUID, w: int = WIDTHS[-1]) -> Response:
        file = await found(app, file_id)
        return await send_transformed_image(request, app.state.engine, app.state.store, file, width=max(w, 1))

    @app.post("/images/{file_id}/turn", status_code=204)
    async def turn(file_id: UUID) -> None:
        await found(app, file_id)
        try:
            await transform_file_in_place(app.state.engine, app.state.store, file_id, rotate=90)
        except ImageRefused as error:  # an animation, say
            raise HTTPException(415, str(error)) from None
        except InvalidFile as error:  # somebody was faster
            raise HTTPException(409, str(error)) from None

    @app.delete("/images/{file_id}", status_code=204)
    async def remove(file_id: UUID) -> None:
        await delete_file(app.state.engine, file_id)

    @app.get("/")
    async def index() -> HTMLResponse:
        newest = select(File).where(File.original_id.is_(None)).order_by(File.created_at.desc()).limit(50)
        async with AsyncSession(app.state.engine) as session:
            files = (await session.scalars(newest)).all()
        return HTMLResponse(page(files))

    return app


async def found(app: FastAPI, file_id: UUID) -> File:
    """A file; the client's mistake when there is none."""
    file = await get_file(app.state.engine, file_id)
    if file is None:
        raise HTTPException(404, "there is no such image")
    return file


# --- the page ---------------------------------------------------------------------------------------------------------


def figure(file: File) -> str:
    """An image with all of its widths: the browser takes the one that fits, in a format that it knows."""
    address = f"/images/{file.id}?v={file.sha256[:8]}"  # another content, another address
    sources = ", ".join(f"{address}&w={width} {width}w" for width in WIDTHS)
    size = f'width="{file.meta["width"]}" height="{file.meta["height"]}"' if "width" in file.meta else ""
    tiny = f"background-image: url({escape(file.meta['placeholder'])})" if "placeholder" in file.meta else ""
    return f"""
    <figure id="f{file.id}">
      <img src="{address}&amp;w=640" srcset="{escape(sources)}" sizes="(min-width: 60rem) 20rem, 45vw"
           {size} style="{tiny}" alt="{escape(file.name)}" loading="lazy">
      <figcaption>{escape(file.name)}
        <button data-method="POST" data-url="/images/{file.id}/turn" title="turn it">&#8635;</button>
        <button data-method="DELETE" data-url="/images/{file.id}" title="remove it">&#215;</button>
      </figcaption>
    </figure>"""


def page(files: Sequence[File]) -> str:
    """The page with these files."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>images</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222 }}
  main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 45vw), 1fr)) }}
  figure {{ margin: 0 }}
  img {{ width: 100%; height: auto; border-radius: .5rem; background-size: 100% 100% }}
  figcaption {{ display: flex; gap: .5rem; color: #555 }}
  button {{ border: 0; background: none; font: inherit; cursor: pointer }}
  button:first-of-type {{ margin-left: auto }}
  label {{ display: inline-block; padding: .4rem 1rem; border-radius: .5rem; background: #1d4ed8; color: #fff }}
  input {{ position: absolute; opacity: 0 }}
</style>
<h1>Images</h1>
<p><label>Add images <input type="file" multiple accept="{",".join(ALLOWED)}"></label> <output></output></p>
<main>{"".join(map(figure, files))}
</main>
<script>
  const send = async (url, options) => {{
    const answer = await fetch(url, options);
    if (!answer.ok) document.querySelector("output").textContent = (await answer.json()).detail;
    return answer.ok;
  }};
  document.querySelector("input").addEventListener("change", async (event) => {{
    const adding = [...event.target.files].map((file) =>
      send(`/images?name=${{encodeURIComponent(file.name)}}`, {{ method: "POST", body: file }}));
    if ((await Promise.all(adding)).every(Boolean)) location.reload();
  }});
  document.querySelector("main").addEventListener("click", async ({{ target }}) => {{
    const {{ url, method }} = target.dataset;
    if (url && await send(url, {{ method }})) location.reload();
  }});
</script>
"""
