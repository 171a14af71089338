"""`kosmos serve` under load: is everybody answered, how long do they wait, and what does HTTP cost?

    python benchmarks/serving.py --checkpoint out/demo --clients 64 --seconds 300

Clients ask for all kinds of things one after another, without a pause. Then all ask for texts of one length, and the
same prompts go to the engine without a server. Prints Markdown. Linux alone: memory and files are read from /proc.
"""

import argparse
import asyncio
import base64
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import httpx

from launch.local import free_port

WORDS = "one two three plus equals the digit is a module returns".split()
NAMES = ("one", "two")
NEW = 48


def requests(folder: Path) -> dict:
    """Kind of request -> a function of a random.Random that returns a path and a body."""
    urls = [
        "data:image/png;base64," + base64.b64encode((folder / f"digit_{n}.png").read_bytes()).decode() for n in NAMES
    ]

    def chat(*parts, **options):
        content = [
            dict(type="text", text=part)
            if isinstance(part, str)
            else dict(type="image_url", image_url=dict(url=urls[part]))
            for part in parts
        ]
        body = dict(messages=[dict(role="user", content=content)], temperature=0, max_tokens=8)
        return "/v1/chat/completions", body | options

    def text(rng, **options):
        words = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
        sizes = dict(max_tokens=rng.choice([8, 16, 48, 96]), temperature=rng.choice([0, 0.8]))
        return "/v1/completions", dict(prompt=words) | sizes | options

    few = "equals three. one plus two equals three. " * 4
    return {
        "text": text,
        "text, streamed": lambda rng: text(rng, stream=True, ignore_eos=True),
        "client that leaves": lambda rng: text(rng, stream=True, ignore_eos=True),
        "four samples": lambda rng: text(rng, n=4, max_tokens=16, temperature=0.9),
        "echo with log-probabilities": lambda rng: text(rng, echo=True, logprobs=1, max_tokens=1),
        "image": lambda rng: chat(rng.randint(0, 1), " The digit is"),
        "image, streamed": lambda rng: chat(rng.randint(0, 1), " The digit is", stream=True),
        "two images": lambda rng: chat(0, " plus ", 1, " equals"),
        "three images, few-shot": lambda rng: chat(0, " plus ", 1, few, rng.randint(0, 1), " The digit is"),
        "image, four beams": lambda rng: chat(rng.randint(0, 1), " The digit is", use_beam_search=True, n=4),
        **{
            f"choice, picture of {name}": lambda rng, i=i: chat(
                i, " The digit is", structured_outputs=dict(choice=["one.", "two.", "seven."])
            )
            for i, name in enumerate(NAMES)
        },
    }


async def streamed(http, path: str, body: dict, leave: bool) -> float:
    """Seconds to the first text of a stream."""
    begin, first, line = time.monotonic(), None, ""
    async with http.stream("POST", path, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if '"error"' in line[:20]:
                raise ValueError(line)
            if first is None and ('"text": "' in line or '"content": "' in line[line.find("delta") :]):
                first = time.monotonic() - begin
                if leave:
                    return first
    if line.strip() not in ("", "data: [DONE]"):
        raise ValueError(f"no end: {line}")
    return first


async def mixed(http, kinds: dict, clients: int, seconds: float, usage) -> dict:
    """Everything at once: seconds by kind, of complete answers and of first texts; errors; memory; choices."""
    end, whole, first = time.monotonic() + seconds, defaultdict(list), []
    errors, chosen, memory, health = Counter(), Counter(), [], []

    async def client(seed: int):
        rng = random.Random(seed)
        while time.monotonic() < end:
            kind = rng.choice(list(kinds))
            path, body = kinds[kind](rng)
            begin = time.monotonic()
            try:
                if body.get("stream"):
                    first.append(await streamed(http, path, body, leave=kind == "client that leaves"))
                else:
                    answer = await http.post(path, json=body)
                    answer.raise_for_status()
                    if kind.startswith("choice"):
                        chosen[answer.json()["choices"][0]["message"]["content"].strip(".") in kind] += 1
                whole[kind].append(time.monotonic() - begin)
            except (httpx.HTTPError, ValueError) as error:
                errors[f"{kind}: {error!r}"[:200]] += 1

    async def watch():
        while time.monotonic() < end:
            begin = time.monotonic()
            (await http.get("/health")).raise_for_status()
            health.append(time.monotonic() - begin)
            memory.append(usage())
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *map(client, range(clients)))
    return dict(whole=whole, first=first, errors=errors, chosen=chosen, memory=memory, health=health)


def prompts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 40))) for _ in range(count)]


async def uniform(http, clients: int) -> float:
    """Tokens a second of the server, all clients together."""
    left = iter(prompts(8 * clients))

    async def client():
        for prompt in left:
            body = dict(prompt=prompt, max_tokens=NEW, temperature=0, ignore_eos=True)
            (await http.post("/v1/completions", json=body)).raise_for_status()

    begin = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    return 8 * clients * NEW / (time.monotonic() - begin)


def engine_alone(checkpoint: str, clients: int) -> float:
    """Tokens a second of the engine for the same prompts, as many of them at the same time."""
    from kosmos_jax import load
    from kosmos_jax.inference.command import pools_of
    from kosmos_jax.inference.options import Options
    from kosmos_jax.inference.prompts import encode_prompt
    from kosmos_jax.serving.command import DEFAULT_SLOTS, PIECES

    model = load(checkpoint, pools=pools_of(DEFAULT_SLOTS), pieces=PIECES)
    engine, options = model.engine, Options(max_new_tokens=NEW, ignore_eos=True)
    engine.warm_up()
    begin, left, there = time.monotonic(), prompts(8 * clients), []
    while left or there:
        while left and len(there) < clients:
            there.append(engine.generate(encode_prompt(left.pop(), model.tokenizer), options))
        engine.step()
        there = [request for request in there if not request.done]
    return 8 * clients * NEW / (time.monotonic() - begin)


def value(metrics: str, name: str) -> int:
    return int(float(next(line.split()[-1] for line in metrics.splitlines() if line.startswith(f"{name} "))))


def at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(args, url: str, pid: int):
    def usage():
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        return resident / 1024, len(os.listdir(f"/proc/{pid}/fd"))

    limits = httpx.Limits(max_connections=args.clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        compiled, before = value((await http.get("/metrics")).text, "kosmos_compiles_total"), usage()
        found = await mixed(http, requests(Path(args.checkpoint)), args.clients, args.seconds, usage)
        await asyncio.sleep(2)
        after, metrics = usage(), (await http.get("/metrics")).text
        speed = await uniform(http, args.clients)
    every = [x for values in found["whole"].values() for x in values]
    print(f"{args.clients} clients, {args.seconds:g} s: {len(every)} answers, {sum(found['errors'].values())} errors\n")
    for error, count in found["errors"].most_common(5):
        print(f"- {count} x {error}")
    print("| seconds | median | 99 of 100 | worst |\n|---|---|---|---|")
    rows = {"first text of a stream": found["first"], "complete answers": every, "`/health`": found["health"]}
    for name, values in {**rows, **dict(sorted(found["whole"].items()))}.items():
        print(f"| {name} ({len(values)}) | {at(values, 0.5):.2f} | {at(values, 0.99):.2f} | {max(values):.2f} |")
    memory = [f"{mib:.0f}" for mib, _ in found["memory"][:: max(1, len(found["memory"]) // 8)]]
    print(f"\nMemory, MiB: {before[0]:.0f} before; {', '.join(memory)} under way; {after[0]:.0f} after.")
    print(f"Open files: {before[1]} before, {max(files for _, files in found['memory'])} at most, {after[1]} after.")
    print(f"Requests left in the engine: {value(metrics, 'kosmos_active')}. ", end="")
    print(f"Programs compiled under way: {value(metrics, 'kosmos_compiles_total') - compiled}.")
    print(f"Choices that name the digit of the picture: {found['chosen'][True]} of {found['chosen'].total()}.")
    return speed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="out/demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    port = free_port()
    command = [sys.executable, "-m", "kosmos_jax.cli", "serve", "--checkpoint", args.checkpoint, "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while time.monotonic() < end and server.poll() is None:
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        speed = asyncio.run(measure(args, url, server.pid))
    finally:
        server.terminate()
        server.wait(60)
    alone = engine_alone(args.checkpoint, args.clients)
    print(f"\n{NEW} tokens after each of {8 * args.clients} prompts, {args.clients} at the same time:", end=" ")
    print(f"{speed:.0f} tokens/s by the server, {alone:.0f} by the engine alone: {speed / alone:.2f}.")


if __name__ == "__main__":
    main()
