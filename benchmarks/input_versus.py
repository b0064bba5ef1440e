"""Times decord and OpenCV for benchmarks/input_throughput.py, in an environment of their own.

Reads requests from stdin, one JSON object a line (tool, path, indices, size); answers each with CPU and wall seconds.
Needs numpy, and decord or opencv-python-headless, but nothing of this project.
"""

import importlib
import json
import os
import sys
import time

import numpy as np


def with_decord(path, indices, size):
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), width=size, height=size, num_threads=1)
    return reader.get_batch(indices).asnumpy()


def with_opencv(path, indices, size):
    """Grabs every frame up to the last one asked for, and converts and scales those that are."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    out, chosen = [], set(indices)
    for i in range(indices[-1] + 1):
        if not capture.grab():
            raise RuntimeError(f"{path}: frame {i} is not there")
        if i in chosen:
            picture = cv2.resize(capture.retrieve()[1], (size, size), interpolation=cv2.INTER_LINEAR)
            out.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(out)


TOOLS = {"decord": with_decord, "opencv": with_opencv}


def main():
    os.sched_setaffinity(0, [int(sys.argv[1])])
    versions = {}
    for tool, module in (("decord", "decord"), ("opencv", "cv2")):
        try:
            versions[tool] = importlib.import_module(module).__version__
        except ImportError:
            continue
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        tube = TOOLS[request["tool"]](request["path"], request["indices"], request["size"])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        size = request["size"]
        assert tube.shape == (len(request["indices"]), size, size, 3), tube.shape
        print(json.dumps({"cpu": cpu, "wall": wall, "mean": float(tube.mean())}), flush=True)


if __name__ == "__main__":
    main()
