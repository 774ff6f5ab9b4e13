"""A connection to a Kubernetes API server through the official client: raw JSON, failures as two exceptions.

Credentials are read anew when the server no longer takes them, because they are rotated. Typed models are not used:
making them of a thousand objects takes longer than everything else in a cycle.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
FIELD_MANAGER = "stoker"
RETRY_S = (0.05, 0.1, 0.2, 0.4)
"""Pauses between writes before a conflict is reported: a status that changes is one too, and no other writer."""
_CONNECTIONS = 64
"""More than watches and writers together, so that no request waits for a connection."""


class ClusterSettings(BaseModel):
    """Which cluster, and as whom."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kubeconfig: Path | None = None
    """Kubeconfig file; without one the service account of the pod that this runs in."""
    context: str | None = None
    """Context of the kubeconfig; by default its current one."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Wall seconds to wait for an answer; well under the cycle."""
    watch_s: Annotated[float, Field(ge=1, le=3600)] = 300.0
    """Wall seconds after which a watch is asked for again from where it was; bounds how long a dead one is kept."""


class ClusterError(Exception):
    """The cluster did not do what was asked."""


class Unreachable(ClusterError):
    """There is no connection, no answer in time, or no usable credential file."""


class Refused(ClusterError):
    """The server's refusal: its HTTP status, its one-word reason and its message."""

    def __init__(self, asked: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{asked}: HTTP status {status}: {message or reason}")
        self.status, self.reason, self.message = status, reason, message


class Cluster:
    """One connection; `calls` counts the requests made, by their method and the watches among them."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.calls: dict[str, int] = {}
        self._client: Any = None
        self._connecting = asyncio.Lock()

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "application/json",
    ) -> Any:
        """The JSON of an answer; raises Refused or Unreachable."""
        limits = aiohttp.ClientTimeout(total=self.settings.timeout_s)
        try:
            response = await self._request(method, path, query or {}, body, content, limits)
            return json.loads(await response.read() or b"null")
        except TimeoutError:
            raise Unreachable(f"{method} {path}: no answer within {self.settings.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"{method} {path}: {str(error) or type(error).__name__}") from error

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Events until the server ends the watch; raises Refused or Unreachable."""
        wait_s = self.settings.watch_s
        query = {**query, "watch": "true", "timeoutSeconds": f"{wait_s:.0f}"}
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self.settings.timeout_s, sock_read=wait_s + self.settings.timeout_s
        )
        try:
            response = await self._request("WATCH", path, query, None, "application/json", limits)
            try:
                while line := await response.content.readline():
                    yield json.loads(line)
            finally:
                response.close()
        except TimeoutError:
            raise Unreachable(f"watch of {path}: silent for longer than the server was to keep it") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"watch of {path}: {str(error) or type(error).__name__}") from error

    async def close(self) -> None:
        """Release connections; closing twice is harmless."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        content: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        client = await self._connected()
        try:
            return await self._send(client, method, path, query, body, content, limits)
        except Refused as refusal:
            if refusal.status != 401:
                raise
            # The credential was rotated, or is no longer good: only its source can tell.
            await self._drop(client)
        client = await self._connected()
        return await self._send(client, method, path, query, body, content, limits)

    async def _send(
        self,
        client: Any,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        content: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        from kubernetes.aio.client.exceptions import ApiException

        self.calls[method] = self.calls.get(method, 0) + 1
        verb = "GET" if method == "WATCH" else method
        prepared = await client.param_serialize(
            verb,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = await client.call_api(*prepared, _request_timeout=limits)
        except ApiException as error:
            raise Refused(f"{method} {path}", error.status or 0, error.reason or "", "") from error
        response: aiohttp.ClientResponse = answer.response
        if response.status >= 300:
            raise _refusal(f"{method} {path}", response, await response.read())
        return response

    async def _connected(self) -> Any:
        # Heavy, and settings that name a cluster are read where no client is installed.
        from kubernetes.aio import config
        from kubernetes.aio.client import ApiClient, Configuration

        async with self._connecting:
            if self._client is None:
                configuration = Configuration()
                configuration.connection_pool_maxsize = _CONNECTIONS
                try:
                    if self.settings.kubeconfig is None:
                        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                    else:
                        await config.load_kube_config(  # type: ignore[no-untyped-call]
                            config_file=str(self.settings.kubeconfig),
                            context=self.settings.context,
                            client_configuration=configuration,
                            persist_config=False,
                        )
                except (config.ConfigException, OSError, ValueError) as error:
                    where = self.settings.kubeconfig or "the pod's service account"
                    raise Unreachable(f"{where}: {error}") from error
                self._client = ApiClient(configuration)
            return self._client

    async def _drop(self, client: Any) -> None:
        async with self._connecting:
            if self._client is client:
                self._client = None
                await client.close()


def _refusal(asked: str, response: aiohttp.ClientResponse, raw: bytes) -> Refused:
    """The server's own words where it has some."""
    status, reason = response.status, response.reason or ""
    try:
        said = json.loads(raw)
        return Refused(asked, status, str(said.get("reason") or reason), str(said.get("message") or ""))
    except (ValueError, AttributeError):
        return Refused(asked, status, reason, raw.decode(errors="replace")[:1000])
