"""An object store on this host, for tests: Moto's S3 server, which keeps everything in memory."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The s3:// URL of a new bucket; this process and the ones that it starts find its server by their environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    bucket = f"bucket-{uuid.uuid4().hex}"  # Moto's memory is one for all servers of a process
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # fsspec gives one instance, with its endpoint, to all who ask with the same arguments: before, and after, none
        # may be left. An instance closes its connections when the last one lets go of it.
        S3FileSystem.clear_instance_cache()
        try:
            S3FileSystem().mkdir(bucket)
            yield f"s3://{bucket}"
        finally:
            S3FileSystem.clear_instance_cache()
            server.stop()
