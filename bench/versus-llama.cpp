#!/usr/bin/env python3
"""inferd against llama.cpp on the same files, threads and tests.

  bench/versus-llama.cpp [options] MODEL.gguf...
    -p 512  -n 128  -d 0,2048   prompt length, tokens to generate, positions in the KV cache before
    -b 1,4                      sequences that generate together (above 1: llama-batched-bench)
    -t N                        threads of both (all CPUs)
    -r 5                        rounds; each runs inferd, then llama.cpp, so that both see the same neighbours
    -o DIR                      where JSON and SVG go (bench/results)

Both are taken at their best round, llama.cpp with or without flash attention, whichever was faster. inferd-bench checks
its output against the scalar reference before it times. Prints a markdown table. A busy machine makes the numbers
worthless, and its neighbours hurt a program that waits in a loop most: the load is recorded, and a warning printed. llama.cpp comes from
bench/build-llama.cpp; the drawing needs nothing but Python."""
import argparse, datetime, json, os, sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from report import HERE, PEER, ROOT, commit, cpu_name, other_load, peer_tools, run, svg


def ints(text):
    return [int(x) for x in text.split(",") if int(x) > 0]


def name(kind, n, depth, batch):
    return f"{kind}{n}" + (f" @ d{depth}" if depth else "") + (f" x {batch}" if batch > 1 else "")


class Table:
    """Best tokens per second by test, and what else was measured with the best."""

    def __init__(self):
        self.tests = {}

    def put(self, test, side, ts, extra=None):
        row = self.tests.setdefault(test, {"inferd": None, "llama.cpp": None})
        samples = (row[side] or {}).get("samples", []) + [round(ts, 3)]
        if row[side] is None or ts > row[side]["ts"]:
            row[side] = dict(ts=ts, **(extra or {}))
        row[side]["samples"] = samples    # how far they lie apart says how quiet the machine was


def inferd_round(o, model, table):
    cmd = [os.path.join(ROOT, "build", "inferd-bench"), "-m", model, "-p", o.p, "-n", o.n, "-d", o.d, "-b", o.b,
           "-t", str(o.t), "-r", "1", "-o", "json"]
    for x in json.loads(run(cmd, "inferd-bench")):
        kind, n = ("pp", x["n_prompt"]) if x["n_prompt"] else ("tg", x["n_gen"])
        table.put(name(kind, n, x["n_depth"], x["n_batch"]), "inferd", x["best_ts"],
                  {k: x[k] for k in ("gb_s", "read_gb_s", "bandwidth_share", "n_checked", "device_info")})


def llama_round(o, model, tools, table):
    cmd = [os.path.join(tools, "llama-bench"), "-m", model, "-p", o.p, "-n", o.n, "-d", o.d, "-t", str(o.t), "-r", "1",
           "-fa", "off,on", "-o", "json"]
    for x in json.loads(run(cmd, "llama-bench")):
        kind, n = ("pp", x["n_prompt"]) if x["n_prompt"] else ("tg", x["n_gen"])
        table.put(name(kind, n, x["n_depth"], 1), "llama.cpp", x["avg_ts"], {"flash_attn": x["flash_attn"]})
    batches = [b for b in ints(o.b) if b > 1]
    for depth in [int(d) for d in o.d.split(",")] if batches else []:
        for n in ints(o.n):
            longest = max(batches) * (max(depth, 1) + n)
            for fa in ("off", "on"):
                cmd = [os.path.join(tools, "llama-batched-bench"), "-m", model, "-t", str(o.t), "-c", str(longest + 1024),
                       "-npp", str(max(depth, 1)), "-ntg", str(n), "-npl", ",".join(map(str, batches)), "-fa", fa,
                       "--output-format", "jsonl"]
                for line in run(cmd, "llama-batched-bench").splitlines():
                    if line.startswith("{"):
                        x = json.loads(line)
                        table.put(name("tg", n, depth, x["pl"]), "llama.cpp", x["speed_tg"], {"flash_attn": int(fa == "on")})


def ratio(row):
    return row["inferd"]["ts"] / row["llama.cpp"]["ts"] if row["inferd"] and row["llama.cpp"] else None


def markdown(title, machine, table):
    out = [f"**{title}** ({machine})", "", "| test | inferd t/s | llama.cpp t/s | ratio | inferd's share of the read bandwidth |",
           "| --- | ---: | ---: | ---: | ---: |"]
    for test, row in table.tests.items():
        a, b, r = row["inferd"], row["llama.cpp"], ratio(row)
        if a is None:    # llama-bench measures one stream also where only more were asked for
            continue
        share = f"{100 * a['bandwidth_share']:.0f} %" if a and a["bandwidth_share"] and test.startswith("tg") else ""
        out.append(f"| {test} | {a['ts']:.1f} | " + (f"{b['ts']:.1f} | {r:.2f} | " if b else " | | ") + f"{share} |")
    return "\n".join(out)


def bars(table):
    return [(t, r["inferd"]["ts"], r["llama.cpp"]["ts"], ratio(r)) for t, r in table.tests.items() if ratio(r)]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for letter, default in (("p", "512"), ("n", "128"), ("d", "0,2048"), ("b", "1")):
        a.add_argument("-" + letter, default=default)
    a.add_argument("-t", type=int, default=os.cpu_count())
    a.add_argument("-r", type=int, default=5)
    a.add_argument("-o", default=os.path.join(HERE, "results"))
    a.add_argument("models", nargs="+", metavar="MODEL.gguf")
    o = a.parse_args()
    tools = peer_tools()
    os.makedirs(o.o, exist_ok=True)
    machine, load = f"{cpu_name()}, {o.t} threads", other_load()
    for model in o.models:
        table, title = Table(), os.path.basename(model).removesuffix(".gguf")
        for _ in range(o.r):
            inferd_round(o, model, table)
            llama_round(o, model, tools, table)
        print(markdown(title, machine, table) + "\n", flush=True)
        facts = {"model": title, "model_bytes": os.path.getsize(model), "machine": machine, "commit": commit(),
                 "llama.cpp": PEER, "date": datetime.date.today().isoformat(), "rounds": o.r,
                 "load_before": load,
                 "options": {k: getattr(o, k) for k in "pndbt"},
                 "tests": [{"test": t, **row, "ratio": ratio(row)} for t, row in table.tests.items()]}
        with open(os.path.join(o.o, title + ".json"), "w") as f:
            json.dump(facts, f, indent=1)
            f.write("\n")
        with open(os.path.join(o.o, title + ".svg"), "w") as f:
            f.write(svg(title, f"{machine}; tokens per second, inferd / llama.cpp", bars(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
