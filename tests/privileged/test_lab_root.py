"""What root's labs can have that nobody else's can: links to elsewhere; and root without the rights for it."""

from __future__ import annotations

import linx_trio as linx
from linx_trio.net import Lab
from tests.agent.labs import addresses_of, link_of, ping
from tests.agent.probes import needs_root
from tests.agent.roots import needs_busybox
from tests.agent.test_lab import NESTED, nested

pytestmark = [needs_root, needs_busybox]
SLEEP = ["sleep", "100000"]


async def test_a_link_from_elsewhere_into_a_lab() -> None:
    """A network namespace that stands for the machine's, with a cable into one of the lab's switches."""
    async with (
        linx.spawn(SLEEP, namespaces={"net"}, stdio=linx.DEVNULL) as machine,
        linx.net.open(machine) as outside,
        Lab() as lab,
    ):
        a, s = lab.host("a"), lab.switch("s")
        lab.link(a, s, address="10.0.0.1/24")
        await lab.start()
        await outside.create_veth("lab0", "up", peer_netns=lab.net)
        await lab.net.set_master("up", "s")
        await lab.net.set_up("up")
        await outside.add_address("lab0", "10.0.0.77/24")
        await outside.set_up("lab0")
        assert await ping(a, "10.0.0.77")


async def test_a_link_of_the_machines_is_lent_to_a_host_and_comes_back() -> None:
    async with (
        linx.spawn(SLEEP, namespaces={"net"}, stdio=linx.DEVNULL) as machine,
        linx.net.open(machine) as outside,
    ):
        await outside.create_veth("port", "peer")
        await outside.set_up("peer")
        async with Lab() as lab, linx.net.open(machine) as lender:
            a = lab.host("a")
            await lab.start()
            await lender.move_to_netns("port", a.net, name="wan", bring_back=True)
            await a.net.add_address("wan", "192.0.2.1/24")
            await a.net.set_up("wan")
            assert addresses_of(await link_of(a, "wan")) == {"192.0.2.1/24"}
        assert {link.name for link in await outside.links()} >= {"port", "peer"}


async def test_root_without_the_rights_has_a_user_namespace() -> None:
    program = NESTED.replace("lambda: RIGHTS", "_lab_site._is_privileged").replace(
        "print(", "print(os.readlink('/proc/self/ns/user') == os.readlink(f'/proc/{a.anchor.host_pid}/ns/user'), "
    )
    for policy, same in ((None, True), (linx.capabilities.drop({"CAP_SYS_ADMIN"}), False)):
        done = await linx.run(nested(program), capture_stdout=True, capabilities=policy)
        assert done.stdout.split()[:2] == [str(same).encode(), b"fine"]
