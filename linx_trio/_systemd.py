"""A scope of our own from the user's systemd, in which cgroups may be made: ``org.freedesktop.systemd1(5)``, spoken
through jeepney (the extra ``systemd``), if it is there.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

_OBJECT, _BUS = "/org/freedesktop/systemd1", "org.freedesktop.systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
SECONDS = 10.0


def is_there() -> bool:
    """Whether there is a user's systemd to ask, and something to ask it with."""
    return os.path.isdir(f"{_runtime_directory()}/systemd") and importlib.util.find_spec("jeepney") is not None


def _runtime_directory() -> str:
    return os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")


def scope_name(pid: int) -> str:
    return f"linx-{pid}.scope"


def start_transient_unit(name: str, pid: int) -> Any:
    """The message that asks for a delegated scope with that process in it."""
    import jeepney

    properties = [
        ("Description", ("s", f"cgroups of linx-trio, process {pid}")),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    address = jeepney.DBusAddress(_OBJECT, bus_name=_BUS, interface=_MANAGER)
    return jeepney.new_method_call(address, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, []))


def start_scope(pid: int) -> None:
    """Asks, and waits until it is done. For a thread. Raises `OSError`."""
    import jeepney
    from jeepney.io.blocking import open_dbus_connection

    rule = jeepney.MatchRule(type="signal", interface=_MANAGER, member="JobRemoved", path=_OBJECT)
    try:
        address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={_runtime_directory()}/bus")
        with open_dbus_connection(bus=address) as bus:
            bus.send_and_get_reply(jeepney.message_bus.AddMatch(rule), timeout=SECONDS)
            manager = jeepney.DBusAddress(_OBJECT, bus_name=_BUS, interface=_MANAGER)
            bus.send_and_get_reply(jeepney.new_method_call(manager, "Subscribe"), timeout=SECONDS)
            with bus.filter(rule) as done:
                reply = bus.send_and_get_reply(start_transient_unit(scope_name(pid), pid), timeout=SECONDS)
                (job,) = jeepney.wrappers.unwrap_msg(reply)
                while (message := bus.recv_until_filtered(done, timeout=SECONDS)).body[1] != job:
                    pass
        if message.body[3] != "done":
            raise OSError(f"systemd could not start the scope: {message.body[3]}")
    except OSError:
        raise
    except Exception as exc:  # jeepney's own are of no common class
        raise OSError(f"systemd did not grant a scope: {exc}") from exc
