"""A file store: rows in the database, content in object storage (S3, GCS, Azure, a folder, memory). Extra `files`.

    store = FileStore.local("uploads")
    file = await create_or_update_file(session, store, name="cat.jpg", source=body, allowed_content_types=["image/*"])
    jobs.include(file_jobs(store))

`send_file` and `send_transformed_image` are in `queue_kit.contrib.files.starlette` and in its neighbour `aiohttp`. See
docs/files.md.
"""

from importlib.util import find_spec

if any(find_spec(each) is None for each in ("obstore", "PIL", "jwt")):
    raise ImportError("the file store needs obstore, Pillow and PyJWT: pip install 'queue-kit[files]'")

from queue_kit.contrib.files.cleanup import Cleaned, job_file_cleanup
from queue_kit.contrib.files.errors import FileNotFound, FilesNotDeleted, ImageRefused, InvalidFile, InvalidFileToken
from queue_kit.contrib.files.image_jobs import (
    job_file_generate_placeholder_image,
    job_file_transform_image,
)
from queue_kit.contrib.files.images import Images, MadeImage, Placeholder
from queue_kit.contrib.files.jobs import file_jobs
from queue_kit.contrib.files.metadata import format_file_metadata
from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.store import FileStore, Stored
from queue_kit.contrib.files.tokens import sign_file_access_token, verify_file_access_token
from queue_kit.contrib.files.transforms import Chosen, choose_image, transform_file_in_place
from queue_kit.contrib.files.uploads import create_or_update_file, delete_file, get_file
from queue_kit.contrib.files.variants import Variant

__all__ = [
    "Chosen",
    "Cleaned",
    "File",
    "FileNotFound",
    "FileStore",
    "FilesNotDeleted",
    "ImageRefused",
    "Images",
    "InvalidFile",
    "InvalidFileToken",
    "MadeImage",
    "Placeholder",
    "Stored",
    "Variant",
    "choose_image",
    "create_or_update_file",
    "delete_file",
    "file_jobs",
    "format_file_metadata",
    "get_file",
    "job_file_cleanup",
    "job_file_generate_placeholder_image",
    "job_file_transform_image",
    "sign_file_access_token",
    "transform_file_in_place",
    "verify_file_access_token",
]
