"""What the comparisons share: running a tool, facts of the machine, the drawing. Python alone, no packages."""
import os, platform, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
PEER = "llama-cpp-python 0.3.36"


def run(cmd, label):
    print("+ " + label, file=sys.stderr)
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if p.returncode != 0:
        sys.exit(f"{cmd[0]}: exit {p.returncode}\n{p.stderr[-2000:]}")
    return p.stdout


def peer_tools():
    """The folder of llama.cpp's programs, built when they are not there."""
    return run([os.path.join(HERE, "build-llama.cpp")], "build-llama.cpp").strip()


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(l.split(":", 1)[1].strip() for l in f if l.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def other_load():
    """Processes that want to run while we have not begun."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): these numbers will not hold", file=sys.stderr)
    return load


def commit():
    p = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return p.stdout.strip() or "unknown"


def escape(s):
    return s.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def svg(title, subtitle, rows):
    """A bar for each (test, inferd, llama.cpp, ratio): how many times better inferd is, llama.cpp's as one."""
    left, bar, step, top = 170, 400, 34, 64
    scale = bar / max([r[3] for r in rows] + [1.25])
    width, height = left + bar + 190, top + step * len(rows) + 34
    one = left + scale
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="system-ui, sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
           f'<text x="16" y="24" font-size="16" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
           f'<text x="16" y="44" fill="#666666">{escape(subtitle)}</text>']
    for i, (test, a, b, r) in enumerate(rows):
        y = top + i * step
        out += [f'<text x="{left - 10}" y="{y + 18}" text-anchor="end" fill="#1a1a1a">{escape(test)}</text>',
                f'<rect x="{left}" y="{y + 4}" width="{r * scale:.1f}" height="20" rx="2" fill="{"#2f6fb0" if r >= 1 else "#b0632f"}"/>',
                f'<text x="{left + max(r * scale, scale) + 8:.1f}" y="{y + 18}" fill="#1a1a1a">{r:.2f} x'
                f'<tspan fill="#666666">  {a:.1f} / {b:.1f}</tspan></text>']
    out += [f'<line x1="{one:.1f}" y1="{top - 4}" x2="{one:.1f}" y2="{top + step * len(rows)}" stroke="#1a1a1a" stroke-dasharray="4 3"/>',
            f'<text x="{one:.1f}" y="{top + step * len(rows) + 18}" text-anchor="middle" fill="#666666">llama.cpp = 1</text>', "</svg>"]
    return "\n".join(out) + "\n"
