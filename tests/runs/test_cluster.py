"""Work on Dask workers that join, die, freeze and are cut off, and schedulers that come back."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import reelmill_cluster_work as work
import yaml

from reelmill.errors import PoisonError, ReelmillError
from reelmill.flows import cluster, workers
from reelmill.flows.cluster import (
    MAX_ARGUMENTS,
    Cluster,
    Need,
    open_cluster,
)
from reelmill.flows.drive import order_of, prepare
from reelmill.flows.profile import (
    AddressProfile,
    GpuProfile,
    KubernetesProfile,
    LocalProfile,
    SlurmProfile,
)
from reelmill.recipe import load_recipe
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.frame import execute
from reelmill.tasks.ingest import Source
from tests.runs import kubernetes_stand_in as k8s
from tests.runs.dask_processes import DaskProcesses, Wire, is_alive, kill, pid_in, until

INFRA = Path(__file__).parents[2] / "infra"
PLAIN = Need("work (clips)")
ON_GPU = Need("look (flow)", {"GPU": 1})
NANNY = ("--memory-limit", "400MB")

_numbers = itertools.count()


CONNECT_SECONDS = 4
REFRESH_SECONDS = 0.5


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", CONNECT_SECONDS)
    monkeypatch.setattr(cluster, "REFRESH_SECONDS", REFRESH_SECONDS)


def at(dask: DaskProcesses, **more: Any) -> AddressProfile:
    return AddressProfile(kind="address", address=dask.address, **more)


def run(cluster: Cluster, function: Callable[..., Any], *args: Any, need: Need = PLAIN) -> Any:
    return cluster.run(function, *args, key=f"work/clips/{next(_numbers):05d}-run", need=need)


async def many(count: int, start: Callable[[], Coroutine[Any, Any, str]]) -> Counter[str]:
    """How many of so many calls each worker did."""
    return Counter(await asyncio.gather(*(start() for _ in range(count))))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[DaskProcesses]:
    with DaskProcesses(tmp_path) as dask:
        yield dask


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """A cluster of a worker with a GPU and one without."""
    with DaskProcesses(tmp_path_factory.mktemp("mixed")) as dask:
        dask.scheduler()
        dask.worker("cpu", "--no-nanny", "--resources", "CPU=1", "--memory-limit", "2GB")
        dask.worker("gpu", "--no-nanny", "--resources", "GPU=1", "--memory-limit", "1GB")

        async def both() -> None:
            async with open_cluster(at(dask)) as cluster:
                await until(lambda: cluster.threads == 2)

        asyncio.run(both())
        yield dask


def test_work_goes_where_it_belongs(mixed: DaskProcesses) -> None:
    async def main() -> None:
        async with open_cluster(at(mixed), needs=[PLAIN]) as cluster:
            plain, gpu = await asyncio.gather(
                many(8, lambda: run(cluster, work.where, 0.05)),
                many(4, lambda: run(cluster, work.where, 0.05, need=ON_GPU)),
            )
            assert plain == {"cpu": 8}
            assert gpu == {"gpu": 4}
        async with open_cluster(at(mixed, cpu_on_gpu=True), needs=[PLAIN, ON_GPU]) as cluster:
            spread = await many(8, lambda: run(cluster, work.where, 0.2))
            assert set(spread) == {"cpu", "gpu"}

    asyncio.run(main())
    # Where there is no card, or no package for one, the line says so.
    told = re.compile(r"distributed.worker - INFO - (GPU 0 is|device cuda needs|torch is needed)")
    logs = {name: (mixed.folder / f"{name}.log").read_text() for name in ("cpu", "gpu")}
    assert {name: len(told.findall(log)) for name, log in logs.items()} == {"cpu": 0, "gpu": 1}


@pytest.mark.parametrize(
    ("need", "told"),
    [
        (
            Need("look (flow)", {"MOON": 2}),
            "look (flow) needs a worker with MOON=2, and none has it; start one: "
            'dask worker {address} --resources "MOON=2"',
        ),
        (
            Need("split (clips)", memory=3_000_000_000),
            "split (clips) needs 2.8 GiB for a shard, and the largest worker has 1.9 GiB for each "
            "thread; start workers with a larger --memory-limit or fewer --nthreads",
        ),
        (
            Need("look (flow)", {"GPU": 1}, memory=1_500_000_000),
            "look (flow) needs 1.4 GiB for a shard, and the largest worker has 953.7 MiB for each "
            "thread; start workers with a larger --memory-limit or fewer --nthreads",
        ),
    ],
)
def test_a_need_that_no_worker_meets_is_said_at_once(
    mixed: DaskProcesses, need: Need, told: str
) -> None:
    async def main() -> None:
        async with open_cluster(at(mixed), needs=[PLAIN, need]):
            raise AssertionError("it opened")

    with pytest.raises(ReelmillError) as error:
        asyncio.run(main())
    assert str(error.value) == told.replace("{address}", mixed.address)


def test_what_is_large_does_not_go_through_the_scheduler(mixed: DaskProcesses) -> None:
    async def main() -> None:
        async with open_cluster(at(mixed)) as cluster:
            await run(cluster, len, "x" * MAX_ARGUMENTS)
            with pytest.raises(ReelmillError, match=r"its arguments take 1.0 MiB"):
                await run(cluster, len, "x" * MAX_ARGUMENTS, "y")

    asyncio.run(main())


def test_what_its_caller_gave_up_is_not_done(mixed: DaskProcesses, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_cluster(at(mixed)) as cluster:
            first = asyncio.ensure_future(run(cluster, work.where, 1.5))
            await asyncio.sleep(0.3)
            second = asyncio.ensure_future(run(cluster, work.note, str(tmp_path / "mark")))
            await asyncio.sleep(0.3)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert await first == "cpu"
            assert await run(cluster, work.where) == "cpu"
            assert not (tmp_path / "mark").exists()

    asyncio.run(main())


def test_an_error_of_the_work_is_its_callers(mixed: DaskProcesses) -> None:
    async def main() -> None:
        async with open_cluster(at(mixed)) as cluster:
            with pytest.raises(FileNotFoundError, match="absent"):
                await run(cluster, os.listdir, "absent")

    asyncio.run(main())


def test_a_worker_that_downloads_stays_light(
    mixed: DaskProcesses, tmp_path: Path, demo_media: Path
) -> None:
    (tmp_path / "urls.csv").write_text(f"url\nfile://{demo_media}/pond.mp4\n")
    recipe = {
        "store": str(tmp_path / "store"),
        "sources": {"urls": {"path": str(tmp_path / "urls.csv")}},
        "datasets": {"videos": {"stage": "download", "from": "urls", "allow_files": True}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(tmp_path / "recipe.yaml", stages=Stages(), source_model=Source)
    build = prepare(loaded, Store.open(loaded.store, create=True), run="run")
    [todo] = build.missing
    order = order_of(build, todo, "run")

    async def main() -> None:
        async with open_cluster(at(mixed)) as cluster:
            made = json.loads(await run(cluster, execute, str(order)))
            assert made["samples"] == 1
            packages = set(await run(cluster, work.loaded))
            assert {"reelmill", "av", "distributed"} <= packages
            assert not packages & {"torch", "cv2", "scenedetect", "prefect", "prefect_dask"}
            assert await run(cluster, work.children) == []

    asyncio.run(main())


def test_workers_that_all_have_gpus_take_other_work_only_if_they_may(
    processes: DaskProcesses,
) -> None:
    processes.scheduler()
    processes.worker("gpu", "--no-nanny", "--resources", "GPU=1")

    async def main() -> None:
        with pytest.raises(ReelmillError) as error:
            async with open_cluster(at(processes), needs=[ON_GPU, PLAIN]):
                raise AssertionError("it opened")
        assert str(error.value) == (
            "work (clips) needs a worker without a GPU, and all have one; start one: dask worker "
            f'{processes.address} --resources "CPU=1", or say cpu_on_gpu: true in the profile'
        )
        async with open_cluster(at(processes, cpu_on_gpu=True), needs=[PLAIN]) as cluster:
            assert await run(cluster, work.where) == "gpu"

    asyncio.run(main())


def test_workers_may_come_late_and_go(processes: DaskProcesses, tmp_path: Path) -> None:
    processes.scheduler()
    first = processes.worker("first", "--no-nanny")

    async def main() -> None:
        async with open_cluster(at(processes), needs=[PLAIN]) as cluster:
            assert cluster.threads == 1
            # One that joins gets work, of what is there already too.
            waiting = asyncio.ensure_future(many(16, lambda: run(cluster, work.where, 0.7)))
            processes.worker("late", "--no-nanny")
            assert (await waiting)["late"] > 1
            # One with a GPU joins: it gets none.
            processes.worker("gpu", "--no-nanny", "--resources", "GPU=1")
            await until(lambda: cluster.threads == 3)
            assert set(await many(9, lambda: run(cluster, work.where, 0.1))) == {"first", "late"}
            # Those that work was meant for go, and another comes.
            staying = [
                asyncio.ensure_future(run(cluster, work.stay, str(tmp_path / str(number))))
                for number in range(2)
            ]
            pids = [await pid_in(tmp_path / str(number)) for number in range(2)]
            kill(first)
            for pid in pids:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            processes.worker("last", "--no-nanny")
            assert await asyncio.gather(*staying) == ["last", "last"]

    asyncio.run(main())


def test_a_killed_worker_and_a_poisonous_call_leave_the_others_alone(
    processes: DaskProcesses, tmp_path: Path
) -> None:
    processes.scheduler(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
    processes.worker("one", *NANNY)
    processes.worker("two", *NANNY)

    async def main() -> None:
        async with open_cluster(at(processes), needs=[PLAIN]) as cluster:
            await until(lambda: cluster.threads == 2)
            staying = asyncio.ensure_future(run(cluster, work.stay, str(tmp_path / "mark")))
            os.kill(await pid_in(tmp_path / "mark"), signal.SIGKILL)
            assert await staying in ("one", "two")
            poison = asyncio.ensure_future(run(cluster, work.eat))
            others = asyncio.ensure_future(many(12, lambda: run(cluster, work.where, 0.3)))
            assert (await others).total() == 12
            with pytest.raises(PoisonError, match="4 workers died while making it"):
                await poison

    asyncio.run(main())


def test_frozen_and_cut_off_workers_lose_their_work_to_others(
    processes: DaskProcesses, tmp_path: Path
) -> None:
    processes.scheduler(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="2s")

    async def main() -> None:
        async with Wire(processes.port).open() as wire:
            far = processes.worker("far", "--no-nanny", to=f"tcp://127.0.0.1:{wire.port}")
            async with open_cluster(at(processes), needs=[PLAIN]) as cluster:
                marks = [tmp_path / name for name in ("far", "frozen")]
                cut_off = asyncio.ensure_future(run(cluster, work.stay, str(marks[0])))
                assert await pid_in(marks[0]) == far.pid
                frozen = processes.worker("frozen", "--no-nanny")
                await until(lambda: cluster.threads == 2)
                stopped = asyncio.ensure_future(run(cluster, work.stay, str(marks[1])))
                assert await pid_in(marks[1]) == frozen.pid
                wire.cut()
                os.kill(frozen.pid, signal.SIGSTOP)
                processes.worker("well", "--no-nanny")
                assert await asyncio.gather(cut_off, stopped) == ["well", "well"]

    asyncio.run(main())


def test_a_scheduler_that_comes_back_finds_its_callers_waiting(
    processes: DaskProcesses,
) -> None:
    scheduler = processes.scheduler()
    processes.worker("cpu", "--no-nanny", "--resources", "CPU=1", forever=True)
    processes.worker("gpu", "--no-nanny", "--resources", "GPU=1", forever=True)

    async def main() -> None:
        nonlocal scheduler
        async with open_cluster(at(processes, patience="60s"), needs=[PLAIN]) as cluster:
            await until(lambda: cluster.threads == 2)
            heard: list[str] = []
            cluster.listen("news", heard.append)
            for away in (0.1, 1.5 * CONNECT_SECONDS):
                plain = asyncio.ensure_future(many(4, lambda: run(cluster, work.where, 0.5)))
                gpu = asyncio.ensure_future(many(2, lambda: run(cluster, work.where, need=ON_GPU)))
                await asyncio.sleep(0.5)
                kill(scheduler)
                # Longer than a client tries by itself, the second time.
                await asyncio.sleep(away)
                scheduler = processes.scheduler()
                assert await plain == {"cpu": 4}
                assert await gpu == {"gpu": 2}
                await run(cluster, work.say, "news", f"away for {away}")
                await until(lambda told=f"away for {away}": heard[-1:] == [told])

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_stays_away_is_given_up(
    processes: DaskProcesses, number: signal.Signals
) -> None:
    scheduler = processes.scheduler()
    processes.worker("one", "--no-nanny")

    async def main() -> None:
        async with open_cluster(at(processes, patience="2s"), needs=[PLAIN]) as cluster:
            calls = [asyncio.ensure_future(run(cluster, work.where, 60)) for _ in range(3)]
            await asyncio.sleep(0.5)
            scheduler.send_signal(number)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            told = (
                f"the Dask scheduler at {processes.address} went away and did not come back for "
                "2s; start it again, and its workers"
            )
            assert [str(end) for end in ends] == [told] * 3
            assert all(type(end) is ReelmillError for end in ends)
            # Whoever comes now is told at once.
            with pytest.raises(ReelmillError, match="did not come back"):
                await asyncio.wait_for(run(cluster, work.where), 5)

    asyncio.run(main())


def test_the_last_worker_that_fits_may_come_back_for_so_long(processes: DaskProcesses) -> None:
    processes.scheduler()
    processes.worker("cpu", "--no-nanny", "--resources", "CPU=1")
    gpu = processes.worker("gpu", "--no-nanny", "--resources", "GPU=1")

    async def main() -> None:
        async with open_cluster(at(processes, patience="3s")) as cluster:
            await until(lambda: cluster.threads == 2)
            kill(gpu)
            with pytest.raises(ReelmillError, match=r"no worker that look \(flow\) can run on"):
                await asyncio.wait_for(run(cluster, work.where, need=ON_GPU), 60)
            assert await run(cluster, work.where) == "cpu"

    asyncio.run(main())


def openssl_commands() -> str:
    """The commands of the guide that make certificates."""
    blocks = re.findall(r"```sh\n(.*?)```", (INFRA / "clusters.md").read_text(), re.DOTALL)
    [commands] = [block for block in blocks if "openssl" in block]
    return str(commands)


def test_tls_keeps_out_who_has_no_certificate(tmp_path: Path) -> None:
    subprocess.run(["sh", "-ec", openssl_commands()], cwd=tmp_path, check=True, capture_output=True)
    files = ("--tls-ca-file", "ca.pem", "--tls-cert", "dask.pem", "--tls-key", "dask-key.pem")
    tls = {
        "ca": tmp_path / "ca.pem",
        "cert": tmp_path / "dask.pem",
        "key": tmp_path / "dask-key.pem",
    }
    with DaskProcesses(tmp_path, *files, protocol="tls") as dask:
        dask.scheduler()
        dask.worker("one", "--no-nanny")

        async def main() -> None:
            async with open_cluster(at(dask, tls=tls)) as cluster:
                assert cluster.address.startswith("tls://")
                assert await run(cluster, work.where) == "one"
            plain = AddressProfile(kind="address", address=dask.address.replace("tls:", "tcp:"))
            for refused in (plain, at(dask)):
                with pytest.raises(ReelmillError, match="no Dask scheduler answers at"):
                    async with open_cluster(refused):
                        raise AssertionError("it opened")

        asyncio.run(main())


def test_each_gpu_of_this_machine_gets_a_worker() -> None:
    async def main() -> None:
        profile = GpuProfile(kind="gpu", gpus=[0, 3], workers=1)
        async with open_cluster(profile, needs=[PLAIN, ON_GPU]) as cluster:
            assert cluster.threads == 3
            gpu = await many(
                6, lambda: run(cluster, work.variable, "CUDA_VISIBLE_DEVICES", need=ON_GPU)
            )
            assert set(gpu) == {"0", "3"}
            plain = {await run(cluster, os.getpid) for _ in range(4)}
            assert len(plain) == 1

    asyncio.run(main())


def test_local_workers_have_no_gpu() -> None:
    async def main() -> None:
        with pytest.raises(ReelmillError, match=r"needs a worker with GPU=1.*use profile gpu"):
            async with open_cluster(LocalProfile(kind="local", workers=1), needs=[ON_GPU]):
                raise AssertionError("it opened")

    asyncio.run(main())


def test_a_local_worker_that_dask_gives_up_is_started_again() -> None:
    async def main() -> None:
        import dask

        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
            async with open_cluster(LocalProfile(kind="local", workers=1)) as cluster:
                pid = await run(cluster, os.getpid)
                os.kill(pid, signal.SIGKILL)
                assert await run(cluster, os.getpid) != pid

    asyncio.run(asyncio.wait_for(main(), 120))


SBATCH = """#!/bin/sh
# What Slurm does, for one machine: run the job, and print its number.
grep -q '^#SBATCH -p cpu$' "$1" || exit 1
cp "$1" "$JOBS/script"
setsid sh "$JOBS/script" > "$JOBS/log" 2>&1 &
echo $! >> "$JOBS/started"
echo "Submitted batch job $!"
"""

SCANCEL = """#!/bin/sh
kill -9 -- "-$1"
"""


class Slurm:
    """A stand-in for Slurm, whose jobs are processes of this machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "started").touch()
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        monkeypatch.setenv("JOBS", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(Path(work.__file__).parent))

    def profile(self, **more: Any) -> SlurmProfile:
        here = {"interface": "lo", "shared": self.folder, "cores": 2, "memory": "1 GB"}
        return SlurmProfile(kind="slurm", queue="cpu", walltime="1h", **here, **more)

    def jobs(self) -> list[int]:
        """The jobs so far."""
        return [int(line) for line in (self.folder / "started").read_text().split()]

    def running(self) -> list[int]:
        return [job for job in self.jobs() if is_alive(job)]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    made = Slurm(tmp_path, monkeypatch)
    yield made
    for job in made.running():
        os.killpg(job, signal.SIGKILL)


def test_slurm_jobs_that_are_lost_are_asked_for_again(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LOST_JOB_SECONDS", 1.0)

    async def main() -> None:
        async with open_cluster(slurm.profile(workers=1), needs=[PLAIN]) as cluster:
            assert cluster.address.startswith("tls://")
            assert cluster.capacity == 2
            [job] = slurm.running()
            [keys] = slurm.folder.glob(".reelmill-*")
            assert keys.stat().st_mode & 0o777 == 0o700
            await run(cluster, work.where, 4 * REFRESH_SECONDS)
            before = await run(cluster, os.getpid)
            os.killpg(job, signal.SIGKILL)
            assert await run(cluster, os.getpid) != before
            assert len(slurm.jobs()) == 2
        await until(lambda: not slurm.running())
        assert not list(slurm.folder.glob(".reelmill-*"))

    asyncio.run(main())


def test_slurm_jobs_are_asked_for_when_there_is_work(slurm: Slurm) -> None:
    async def main() -> None:
        profile = slurm.profile(adapt={"max": 3})
        async with open_cluster(profile, needs=[PLAIN]) as cluster:
            assert (cluster.threads, cluster.capacity) == (0, 6)
            assert not slurm.jobs()
            await run(cluster, os.getpid)
            assert len(slurm.running()) == 1
        with pytest.raises(ReelmillError, match=r"needs 953.7 MiB for a shard.*has 476.8 MiB"):
            async with open_cluster(profile, needs=[Need("split (x)", memory=10**9)]):
                raise AssertionError("it opened")
        with pytest.raises(ReelmillError, match="GPU=1, and none has it; say 'gpus: 1'"):
            async with open_cluster(slurm.profile(workers=1), needs=[ON_GPU]):
                raise AssertionError("it opened")

    asyncio.run(main())


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[k8s.Kubernetes]:
    with k8s.Kubernetes(tmp_path) as made:
        monkeypatch.setenv("KUBECONFIG", str(made.config))
        yield made


def test_kubernetes_pods_live_as_long_as_the_cluster(kubernetes: k8s.Kubernetes) -> None:
    profile = KubernetesProfile(
        kind="kubernetes",
        image="films/reelmill:1",
        memory="1 GiB",
        workers=1,
        env={"COLOUR": "blue"},
        gpu={"workers": 1, "memory": "1 GiB"},
    )

    async def main() -> None:
        async with open_cluster(profile, needs=[PLAIN, ON_GPU]) as cluster:
            assert cluster.capacity == 2
            assert "-default-worker-" in await run(cluster, work.where)
            assert "-gpu-worker-" in await run(cluster, work.where, need=ON_GPU)
            assert await run(cluster, work.variable, "COLOUR") == "blue"
            assert kubernetes.running()
        assert not kubernetes.running()
        assert not kubernetes.existing("daskclusters")

    asyncio.run(main())


def test_kubernetes_adapts_to_the_work(kubernetes: k8s.Kubernetes) -> None:
    profile = KubernetesProfile(
        kind="kubernetes", image="films/reelmill:1", memory="1 GiB", adapt={"max": 7}
    )

    async def main() -> None:
        async with open_cluster(profile, needs=[PLAIN]) as cluster:
            assert (cluster.threads, cluster.capacity) == (0, 7)
            [scaler] = kubernetes.existing("daskautoscalers")
            assert (scaler["spec"]["minimum"], scaler["spec"]["maximum"]) == (0, 7)
        with pytest.raises(ReelmillError, match="GPU=1, and none has it; say 'gpu:' in the prof"):
            async with open_cluster(profile, needs=[ON_GPU]):
                raise AssertionError("it opened")

    asyncio.run(main())


def test_a_kubernetes_that_does_not_answer_is_said(
    kubernetes: k8s.Kubernetes, tmp_path: Path
) -> None:
    text = kubernetes.config.read_text()
    kubernetes.config.write_text(re.sub(r"127.0.0.1:\d+", "127.0.0.1:9", text))
    profile = KubernetesProfile(kind="kubernetes", image="x", memory="1 GiB", workers=1)

    async def main() -> None:
        async with open_cluster(profile):
            raise AssertionError("it opened")

    with pytest.raises(
        ReelmillError, match=r"profile kubernetes: .*is the Dask operator installed"
    ):
        asyncio.run(main())
