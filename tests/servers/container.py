"""A server in a container, by testcontainers."""

from __future__ import annotations

from collections.abc import Mapping

from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tests.servers.base import Kind, Server, reaper
from tests.servers.engine import Engine

__all__ = ["ContainerServer"]

STOP_TIMEOUT_S = 30
testcontainers_config.ryuk_disabled = True  # `reaper` does its work


class ContainerServer(Server):
    def __init__(self, kind: Kind, options: Mapping[str, str], engine: Engine, image: str) -> None:
        super().__init__(kind)
        config = f"/{kind.config_name}"
        self._engine = engine
        self._container = (
            DockerContainer(image, docker_client_kw=engine.settings)
            .with_command(kind.command(config))
            .with_envs(**kind.environment(config))
            .with_copy_into_container(kind.config("0.0.0.0", kind.port, options).encode(), config)
        )
        # `with_bind_ports` knows only of a port that the whole network can reach.
        self._container.ports[f"{kind.port}/tcp"] = ("127.0.0.1", self.port)  # type: ignore[assignment]
        network = {"network": engine.network} if engine.network else {}
        self._container.with_kwargs(stop_signal=kind.stop_signal, **network)
        self._started = False

    def _start(self) -> None:
        if self._started:
            self._container.get_wrapped_container().start()
            return
        self._container.start()
        self._started = True
        reaper().add("container", self._name)

    @property
    def _name(self) -> str:
        return f"{self._engine.host},{self._container.get_container_id()}"

    def _is_running(self) -> bool:
        container = self._container.get_wrapped_container()
        container.reload()
        return bool(container.status == "running")

    def _log(self) -> str:
        return self._container.get_wrapped_container().logs().decode(errors="replace")

    def stop(self) -> None:
        self._container.get_wrapped_container().stop(timeout=STOP_TIMEOUT_S)

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def freeze(self) -> None:
        self._container.get_wrapped_container().pause()

    def thaw(self) -> None:
        self._container.get_wrapped_container().unpause()

    def close(self) -> None:
        self._container.stop()
        if self._started:
            reaper().remove("container", self._name)
