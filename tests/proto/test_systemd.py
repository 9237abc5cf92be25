"""What the user's systemd would be asked for. That it grants it is seen only where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from linx_trio import _systemd

jeepney = pytest.importorskip("jeepney", reason="jeepney is not installed: pip install 'linx-trio[test]'")


def test_a_delegated_scope_is_asked_for() -> None:
    message = _systemd.start_transient_unit(_systemd.scope_name(77), 77)
    (received,) = jeepney.low_level.Parser().feed(message.serialise(5))
    fields = {field.name: value for field, value in received.header.fields.items()}
    assert fields["destination"] == "org.freedesktop.systemd1"
    assert fields["member"] == "StartTransientUnit"
    assert fields["signature"] == "ssa(sv)a(sa(sv))"
    name, mode, properties, others = received.body
    assert (name, mode, others) == ("linx-77.scope", "fail", [])
    asked = dict(properties)
    assert asked["Delegate"] == ("b", True)
    assert asked["PIDs"] == ("au", [77])
    assert asked["CollectMode"] == ("s", "inactive-or-failed")  # nothing is left of it


def test_no_systemd_is_asked_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert not _systemd.is_there()
    (tmp_path / "systemd").mkdir()
    assert _systemd.is_there()


def test_a_bus_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    with pytest.raises(OSError, match=r"bus|No such file"):
        _systemd.start_scope(77)
