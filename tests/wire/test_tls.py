# SPDX-License-Identifier: Apache-2.0
"""TLS with client certificates, against grpcio both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

from chantier.errors import ConfigError
from chantier.pb import control_pb2 as pb
from chantier.wire import Channel, GrpcError, Keepalive, Server, Stub
from chantier.wire.tls import client_context, server_context

from .peers import CONTROL, GRPCIO, Echo, TheirEcho, run, their_call


@dataclass
class Certificates:
    folder: Path
    ca: trustme.CA

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    folder = tmp_path_factory.mktemp("tls")
    ca, other = trustme.CA(), trustme.CA()
    for name, issued in (
        ("server", ca.issue_cert("localhost", "127.0.0.1")),
        ("client", ca.issue_cert("client@example.com", common_name="builder")),
        ("stranger", other.issue_cert("stranger@example.com")),
    ):
        issued.private_key_pem.write_to_path(folder / f"{name}-key.pem")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    yield Certificates(folder, ca)


def test_client_certificates(certificates: Certificates) -> None:
    c = certificates.path

    async def body() -> None:
        echo = Echo()
        server = Server([echo.service()], keepalive=Keepalive())
        tls = server_context(c("server"), c("server-key"), client_ca=c("ca"))
        listener = await server.listen("tcp://127.0.0.1:0", tls=tls)
        port = int(listener.address.rpartition(":")[2])

        def stub(**options: Path) -> Stub:
            return Stub(Channel.tcp("localhost", port, tls=client_context(**options)), CONTROL)

        good = stub(ca=c("ca"), cert=c("client"), key=c("client-key"))
        await good.unary("Info", pb.InfoRequest())
        _metadata, _remaining, peer = echo.seen[0]
        assert peer.names == ("builder",) and peer.address.startswith("127.0.0.1:")
        await good.channel.close()
        for options in ({"ca": c("ca")}, {"ca": c("ca"), "cert": c("stranger"), "key": c("stranger-key")}):
            with pytest.raises(GrpcError) as caught:
                await asyncio.wait_for(stub(**options).unary("Info", pb.InfoRequest()), 60)
            assert caught.value.code == 14
        with pytest.raises(GrpcError, match=r"tls: .*(self-signed|unable to get|unknown|signed certificate)"):
            await stub(ca=c("other"), cert=c("client"), key=c("client-key")).unary("Info", pb.InfoRequest())

        credentials = grpc.ssl_channel_credentials(c("ca").read_bytes(), c("client-key").read_bytes(), c("client").read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=GRPCIO[:-1]) as channel:
            answer = await their_call(channel, "unary_unary", "Info", pb.InfoResponse)(pb.InfoRequest(), timeout=60)
            assert answer.buildkitVersion.version == "none"
        await server.close(1)

    run(body())


def test_grpcio_server_with_tls(certificates: Certificates) -> None:
    c = certificates.path

    async def body() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((TheirEcho(),))
        credentials = grpc.ssl_server_credentials(
            [(c("server-key").read_bytes(), c("server").read_bytes())], c("ca").read_bytes(), require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        tls = client_context(ca=c("ca"), cert=c("client"), key=c("client-key"))
        stub = Stub(Channel.tcp("127.0.0.1", port, tls=tls, server_name="localhost"), CONTROL)
        answer = await stub.unary("Info", pb.InfoRequest(), metadata=[("x-say", "tls")], timeout_s=60)
        assert answer.buildkitVersion.version == "tls"
        await stub.channel.close()
        await server.stop(0.5)

    run(body())


def test_files_that_cannot_be_used(certificates: Certificates) -> None:
    c = certificates.path
    with pytest.raises(ConfigError, match=f"failed to read certificate {c('none')}"):
        server_context(c("none"), c("server-key"))
    with pytest.raises(ConfigError, match=f"failed to load certificate {c('client')} with key {c('server-key')}"):
        server_context(c("client"), c("server-key"))
    with pytest.raises(ConfigError, match="failed to load certificates of"):
        client_context(ca=c("server-key"))
    with pytest.raises(ConfigError, match="both a certificate and a key"):
        client_context(cert=c("client"))
