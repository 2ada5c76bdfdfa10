# SPDX-License-Identifier: Apache-2.0
"""A cache in a bucket: boto3 on our side, a server that speaks S3 on the other."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import IN_CI, Command, free_port, wait_for_port

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

TEXT = "FROM alpine AS one\nRUN echo one > /one\nFROM alpine\nCOPY --from=one /one /one\nRUN cat /one\n"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a bucket `caches`."""
    if importlib.util.find_spec("boto3") is None or (
        shutil.which("moto_server") is None and importlib.util.find_spec("moto") is None
    ):
        if IN_CI:
            pytest.fail("not here, and this is CI: boto3, moto")
        pytest.skip("not here: boto3, moto")
    port = free_port()
    program = [shutil.which("moto_server")] if shutil.which("moto_server") else [sys.executable, "-m", "moto.server"]
    log = open(tmp_path_factory.mktemp("s3") / "log", "wb")
    process = subprocess.Popen([*map(str, program), "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    wait_for_port(port, process=process)
    address = f"http://127.0.0.1:{port}"
    client(address).create_bucket(Bucket="caches")
    yield address
    process.terminate()
    process.wait(60)


def client(address: str) -> Any:
    import boto3

    return boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="hush"
    )


def place(address: str, more: str = "") -> str:
    return (
        f"type=s3,bucket=caches,region=us-east-1,endpoint_url={address},access_key_id=key,secret_access_key=hush,"
        f"use_path_style=true,prefix=ci/,name=app{more}"
    )


def test_there_and_back(make_command: Callable[..., Command], s3: str) -> None:
    one, two = make_command(name="one"), make_command(name="two")
    done = one.build(TEXT, "--cache-to", place(s3, ",mode=max")).ok()
    assert "writing config sha256:" in done.step("exporting cache to Amazon S3")
    keys = [entry["Key"] for entry in client(s3).list_objects_v2(Bucket="caches")["Contents"]]
    assert "ci/manifests/app" in keys
    config = json.loads(client(s3).get_object(Bucket="caches", Key="ci/manifests/app")["Body"].read())
    assert {f"ci/blobs/{layer['blob']}" for layer in config["layers"]} < set(keys)
    assert set(config["layers"][0]["annotations"]) == {"mediaType", "diffID", "size", "createdAt"}
    done = two.build(TEXT, "--cache-from", place(s3)).ok()
    assert "CACHED" in done.step("RUN cat /one")
    assert "hush" not in one("history", "inspect", "--format=json").out
    # What was taken is here: the bucket is not asked again.
    done = two.build(TEXT + "RUN cat /one > /two\n").ok()
    assert "DONE" in done.step("RUN cat /one > /two")


def test_bucket_and_region_of_the_environment(make_command: Callable[..., Command], s3: str) -> None:
    env = {"AWS_BUCKET": "caches", "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush"}
    where = f"type=s3,endpoint_url={s3},use_path_style=true,prefix=env/,name=app"
    make_command(name="one").build(TEXT, "--cache-to", f"{where},mode=max,ignore-error=false", env=env).ok()
    done = make_command(name="two").build(TEXT, "--cache-from", where, env=env).ok()
    assert "CACHED" in done.step("RUN cat /one")


def test_trouble_is_a_warning(make_command: Callable[..., Command], s3: str) -> None:
    command = make_command()
    done = command.build(TEXT, "--cache-from", place(s3).replace("name=app", "name=nothing")).ok()
    assert "no cache named nothing in bucket caches" in done.err
    done = command.build(TEXT, "--cache-to", place(s3).replace("bucket=caches", "bucket=missing")).ok()
    assert "the build goes on without" in done.err
    assert (
        command.build(TEXT, "--cache-to", place(s3, ",ignore-error=false").replace("bucket=caches", "bucket=missing")).code != 0
    )
    done = command.build(TEXT, "--cache-to", "type=s3")
    assert done.code != 0
    assert "bucket ($AWS_BUCKET) not set" in done.err


def test_a_damaged_object_is_not_used(make_command: Callable[..., Command], s3: str, tmp_path: Path) -> None:
    one = make_command(name="one")
    one.build(
        TEXT, "--cache-to", place(s3, ",mode=max").replace("name=app", "name=bad").replace("prefix=ci/", "prefix=bad/")
    ).ok()
    bucket = client(s3)
    for entry in bucket.list_objects_v2(Bucket="caches", Prefix="bad/blobs/")["Contents"]:
        bucket.put_object(Bucket="caches", Key=entry["Key"], Body=bytes(entry["Size"]))
    done = make_command(name="two").build(
        TEXT, "--cache-from", place(s3).replace("name=app", "name=bad").replace("prefix=ci/", "prefix=bad/")
    )
    assert "DONE" in done.ok().step("RUN echo one")
