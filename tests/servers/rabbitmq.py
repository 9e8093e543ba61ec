"""RabbitMQ, without any plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.servers.base import Kind, Unavailable, free_port

__all__ = ["RabbitMQ"]

# The node wants its port mapper to outlive it; here both are of one process group, and end together.
RUN = 'epmd -address 127.0.0.1 & exec "$0"'


class RabbitMQ(Kind):
    config_name, port, package = "rabbitmq.conf", 5672, "rabbitmq-server"
    # Not the script in /usr/sbin, which does not hand on a signal.
    image_changes = ["ENV PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin", "USER rabbitmq"]
    hello = b"AMQP\x00\x00\x09\x01"

    def __init__(self, version: str, suite: str) -> None:
        self.version, self.suite = version, suite
        self.name, self.image = f"rabbitmq-{version}", f"rabbitmq:{version}"

    def url(self, port: int) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port}/"

    def is_answer(self, data: bytes) -> bool:
        return data.startswith(b"\x01\x00\x00")  # the method frame Connection.Start

    def config(self, bind: str, port: int, options: Mapping[str, str]) -> str:
        lines = {"listeners.tcp.default": f"{bind}:{port}", "loopback_users": "none", "log.console": "true"}
        return "".join(f"{key} = {value}\n" for key, value in (lines | dict(options)).items())

    def command(self, config: str) -> list[str]:
        return ["rabbitmq-server"]

    def environment(self, config: str) -> dict[str, str]:
        return {"RABBITMQ_CONFIG_FILE": config}

    def local_command(self, config: str) -> list[str]:
        homes = sorted(Path("/usr/lib/rabbitmq/lib").glob(f"rabbitmq_server-{self.version}.*"))
        if not homes:
            raise Unavailable(f"rabbitmq-server {self.version} is not installed in /usr/lib/rabbitmq")
        return ["sh", "-c", RUN, str(homes[-1] / "sbin" / "rabbitmq-server")]

    def local_environment(self, directory: str, port: int) -> dict[str, str]:
        dist_port = free_port()
        return {
            "HOME": directory,  # the cookie
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": f"test{port}@localhost",
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": f"{directory}/data",
            "RABBITMQ_LOG_BASE": f"{directory}/log.d",
            "RABBITMQ_CONFIG_FILE": f"{directory}/{self.config_name}",
            "RABBITMQ_CONF_ENV_FILE": f"{directory}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        }
