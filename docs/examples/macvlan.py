"""A workload with a macvlan on the host's eth0, configured before its first instruction. As root: python macvlan.py"""

import trio

import linx_trio as linx


async def main() -> None:
    # A fresh network namespace; the child waits at the checkpoint.
    program = ["/bin/sh", "-c", "ip -br address; ip route"]
    async with linx.net.open() as host, linx.spawn(program, namespaces={"net"}) as child:
        # On the host's side: make a macvlan, and move it into the child's namespace.
        await host.create_macvlan("ct0", "eth0", mode="bridge")
        await host.move_to_netns("ct0", child.host_pid)

        # Inside the child's namespace: configure it.
        async with linx.net.open(child.host_pid) as ns:
            await ns.set_up("lo")
            await ns.add_address("ct0", "10.0.0.5", 24)
            await ns.set_up("ct0")
            await ns.add_default_route("10.0.0.1")

        # Past the checkpoint: the workload starts with its network in place.
        await child.proceed()
        print(await child.wait())


if __name__ == "__main__":
    trio.run(main)
