"""A shell in namespaces of its own, at your terminal: ``python docs/examples/attach.py``. ^P ^Q detaches."""

import trio

import linx_trio as linx


async def main() -> None:
    async with linx.spawn(["/bin/sh"], stdio=linx.PTY, auto_proceed=True, env={"PS1": "workload# "}) as s:
        print("a shell; it ends with ^D, and ^P ^Q detaches from it")
        while await linx.tty.attach(s) is linx.tty.DETACHED:
            print(f"\r\ndetached: {s!r}")
            if await trio.to_thread.run_sync(input, "attach again? ") != "yes":
                return
        print(s.outcome)


if __name__ == "__main__":
    trio.run(main)
