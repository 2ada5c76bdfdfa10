# SPDX-License-Identifier: Apache-2.0
"""Services as their .proto files describe them: message classes and kinds of calls come from the generated modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from chantier.values import dataclass

Handler = Callable[..., Any]
"""`async (request, call) -> response` for one response, `async (request, call) -> None` that sends for several; where the client
streams there is no request: `async (call) -> response` and `async (call) -> None`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The shape of one method."""

    path: str  # /service/Method
    request: Any  # message class
    response: Any
    client_streaming: bool
    server_streaming: bool

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@lru_cache(256)
def methods(service: str) -> Mapping[str, Method]:
    """The methods of a service by name. Raises LookupError unless the pb module that describes it was imported."""
    from chantier.pb import message_class, pool

    try:
        found = pool.FindServiceByName(service)
    except KeyError as err:
        raise LookupError(f"no description of service {service}: its pb module is not imported") from err
    return {
        method.name: Method(
            path=f"/{service}/{method.name}",
            request=message_class(method.input_type),
            response=message_class(method.output_type),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
        for method in found.methods
    }


class Service:
    """Handlers for methods of one service. Methods without a handler are answered with Unimplemented."""

    def __init__(self, name: str, handlers: Mapping[str, Handler]) -> None:
        self.name = name
        shapes = methods(name)
        unknown = set(handlers) - set(shapes)
        if unknown:
            raise LookupError(f"service {name} has no method {', '.join(sorted(unknown))}")
        self.handlers = {method: (shapes[method], handler) for method, handler in handlers.items()}

    @property
    def paths(self) -> list[str]:
        """`/service/Method` of each method that is served."""
        return [shape.path for shape, _ in self.handlers.values()]


__all__ = ["Handler", "Method", "Service", "methods"]
