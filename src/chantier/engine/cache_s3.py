# SPDX-License-Identifier: Apache-2.0
"""Caches in S3 and what speaks its language, laid out as BuildKit does (protocol.md 3.7); the client is boto3.

    PREFIX MANIFESTS_PREFIX NAME    the cache config, whose layers say themselves what they are
    PREFIX BLOBS_PREFIX DIGEST      the blobs

boto3 is an extra: `pip install chantier[s3]`. Credentials are those of the attributes, else what boto3 finds by itself; bucket
and region those of the attributes, else AWS_BUCKET and AWS_REGION of the engine's environment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from chantier.cache import LayerBlob
from chantier.cache.remote.write import Written
from chantier.config.units import read_duration
from chantier.errors import ChantierError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from chantier.export import parse_bool
from chantier.op.worker import threaded
from chantier.progress import Step
from chantier.spec import Descriptor, digest_of
from chantier.store import Writer

if TYPE_CHECKING:
    from .cache_export import CacheExport
    from .engine import Engine

_CONFIG_LIMIT = 64 << 20


def bucket_of(attrs: Mapping[str, str]) -> str:
    """Of the attributes, else what the engine was started with. Raises UsageError if neither names one."""
    found = attrs.get("bucket") or os.environ.get("AWS_BUCKET", "")
    if not found:
        raise UsageError("bucket ($AWS_BUCKET) not set for s3 cache", hint="type=s3,bucket=NAME,region=REGION")
    return found


class Bucket:
    """One cache in one bucket. Thread-safe, as boto3's clients are."""

    def __init__(self, attrs: Mapping[str, str]) -> None:
        bucket = bucket_of(attrs)
        try:
            import boto3
            from botocore.config import Config
        except ImportError as err:
            raise UnsupportedError("the s3 cache needs boto3", hint="pip install 'chantier[s3]'") from err
        path_style = parse_bool("use_path_style", attrs["use_path_style"]) if "use_path_style" in attrs else False
        self.bucket = bucket
        self.names = [name for name in (attrs.get("name") or "buildkit").split(";") if name]
        prefix = attrs.get("prefix", "")
        self._manifests = prefix + attrs.get("manifests_prefix", "manifests/")
        self._blobs = prefix + attrs.get("blobs_prefix", "blobs/")
        self._refresh = timedelta(seconds=read_duration(attrs.get("touch_refresh") or "24h"))
        retries = {"mode": attrs.get("retry_mode") or "standard", "max_attempts": int(attrs.get("retry_max_attempts") or 5)}
        with self._told("open"):
            self._client: Any = boto3.client(
                "s3",
                region_name=attrs.get("region") or os.environ.get("AWS_REGION") or None,
                endpoint_url=attrs.get("endpoint_url") or None,
                aws_access_key_id=attrs.get("access_key_id") or None,
                aws_secret_access_key=attrs.get("secret_access_key") or None,
                aws_session_token=attrs.get("session_token") or None,
                config=Config(retries=retries, s3={"addressing_style": "path" if path_style else "auto"}),
            )

    def config(self) -> bytes:
        """Of the first name that has one. Raises NotFoundError."""
        for name in self.names:
            with self._told(f"read {self._manifests}{name}"):
                try:
                    answer = self._client.get_object(Bucket=self.bucket, Key=self._manifests + name)
                except self._client.exceptions.NoSuchKey:
                    continue
                data = answer["Body"].read(_CONFIG_LIMIT + 1)
            if len(data) > _CONFIG_LIMIT:
                raise IntegrityError(f"{self._manifests}{name} is too large for a cache config")
            return bytes(data)
        raise NotFoundError(f"no cache named {' or '.join(self.names)} in bucket {self.bucket}")

    def put_config(self, data: bytes) -> None:
        for name in self.names:
            with self._told(f"write {self._manifests}{name}"):
                self._client.put_object(Bucket=self.bucket, Key=self._manifests + name, Body=data)

    def size(self, digest: str, *, touch: bool = False) -> int | None:
        """None if it is not there. With `touch` an old object is made young again, so that rules of the bucket let it live."""
        key = self._blobs + digest
        with self._told(f"look at {key}"):
            try:
                found = self._client.head_object(Bucket=self.bucket, Key=key)
            except self._client.exceptions.ClientError as err:
                if err.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return None
                raise
            if touch and datetime.now(UTC) - found["LastModified"] > self._refresh:
                self._client.copy_object(
                    Bucket=self.bucket, Key=key, CopySource={"Bucket": self.bucket, "Key": key}, MetadataDirective="REPLACE"
                )
            return int(found["ContentLength"])

    def put(self, digest: str, file: Any) -> None:
        with self._told(f"write {self._blobs}{digest}"):
            self._client.upload_fileobj(file, self.bucket, self._blobs + digest)

    def fetch(self, descriptor: Descriptor, writer: Writer, cancelled: Callable[[], bool]) -> None:
        """The blob's bytes from the writer's offset on; whoever commits them verifies them."""
        key = self._blobs + descriptor.digest
        with self._told(f"read {key}"):
            more = {"Range": f"bytes={writer.offset}-"} if writer.offset else {}
            try:
                body = self._client.get_object(Bucket=self.bucket, Key=key, **more)["Body"]
            except self._client.exceptions.NoSuchKey as err:
                raise NotFoundError(f"{key}: not found in bucket {self.bucket}") from err
            while chunk := body.read(1 << 20):
                if cancelled():
                    return
                writer.write(chunk)

    @contextmanager
    def _told(self, action: str) -> Iterator[None]:
        """boto3's errors as ours."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as err:
            raise ChantierError(f"failed to {action} in bucket {self.bucket}: {err}") from err


class S3Place:
    """Where an import lies."""

    keeps = False  # a later build may have other credentials

    def __init__(self, engine: Engine, attrs: Mapping[str, str]) -> None:
        self.bucket = Bucket(attrs)
        self.source = engine.fetcher.register(self.bucket.fetch)

    def config(self) -> bytes:
        return self.bucket.config()

    def has(self, descriptor: Descriptor) -> bool:
        return self.bucket.size(descriptor.digest) == descriptor.size


class S3Target:
    """Where an export goes."""

    notes = True

    def __init__(self, engine: Engine, export: CacheExport, sessions: Sequence[Any]) -> None:
        self._engine = engine
        self._sessions = sessions
        self._bucket = Bucket(export.attrs)

    async def layer(self, layer: LayerBlob, descriptor: Descriptor, step: Step) -> None:
        await threaded(lambda cancelled: self._layer(layer, descriptor, cancelled))

    def _layer(self, layer: LayerBlob, descriptor: Descriptor, cancelled: Callable[[], bool]) -> None:
        if self._bucket.size(descriptor.digest, touch=True) == descriptor.size:
            return
        if not layer.local:
            self._engine.cache.bring(layer.descriptor, sessions=self._sessions, cancelled=cancelled)
        self._check(descriptor.digest)
        with self._engine.blobs.open(descriptor.digest) as file:
            self._bucket.put(descriptor.digest, file)

    def _check(self, digest: str) -> None:
        """S3 does not know what the name of a blob promises, so it is checked here. Raises IntegrityError."""
        with self._engine.blobs.verified(digest) as reader:
            while reader.read(1 << 20):
                pass

    async def documents(self, written: Written, export: CacheExport, step: Step) -> Mapping[str, str]:
        data = written.config.dump()
        with step.action(f"writing config {digest_of(data)}"):
            await asyncio.to_thread(self._bucket.put_config, data)
        return {}


__all__ = ["Bucket", "S3Place", "S3Target", "bucket_of"]
