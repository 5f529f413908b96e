"""What the engine, its clients, its zygote and its workers say to each other."""

from __future__ import annotations

import msgspec

from fedmt_flower.device.ipc.job import Job, JobResult
from fedmt_flower.device.ipc.place import Place
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.ipc.steps import Kernel, Step
from fedmt_flower.domain.profile import DeviceFeatures, StepKind
from fedmt_flower.domain.round import RoundOrder, RoundReport
from fedmt_flower.domain.task import Task


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A frame; its class's name is the tag in its JSON."""


class Fork(Frame, frozen=True, kw_only=True):
    """To the zygote: fork a worker that speaks on the first file sent and logs to the second."""


class Loaded(Frame, frozen=True, kw_only=True):
    """From the zygote: its imports are done."""


class Forked(Frame, frozen=True, kw_only=True):
    """From the zygote: the new worker, by now a child of the engine."""

    pid: int


class Begin(Frame, frozen=True, kw_only=True):
    """To a worker, first of all: what it is for, where it runs, and whose child it must be."""

    task: Task
    seat: Seat
    parent: int


class Ready(Frame, frozen=True, kw_only=True):
    """From a worker: its device is initialised."""


class Do(Frame, frozen=True, kw_only=True):
    """To a worker: do a job on the weights in the file sent."""

    job: Job


class Appraise(Frame, frozen=True, kw_only=True):
    """To a worker: load the data of a job's site, and tell what there is to do."""

    job: Job


class Rehearse(Frame, frozen=True, kw_only=True):
    """To a worker: take `steps` training steps of a job, and keep all that they need for measurements.

    `autotune` says whether cuDNN times its algorithms for every new shape; None leaves that as it is.
    `evaluate` has the model evaluated on a batch first, if a job not met before evaluates by the package's
    own loop.
    """

    job: Job
    steps: int
    autotune: bool | None = None
    evaluate: bool = False


class Describe(Frame, frozen=True, kw_only=True):
    """To a rehearsed worker: count what a step costs and, if asked, see what the seat's device can do.

    A worker whose task has no steps counts one pass of `job`, with batches of `batch` samples, instead.
    `peak` asks for the fastest matrix product in the precision of the task's own steps.
    """

    device: bool = True
    peak: bool = False
    job: Job | None = None
    batch: int = 0


class Rest(Frame, frozen=True, kw_only=True):
    """To a worker: give memory back; unless it is to `forget`, a next rehearsal need not be set up again."""

    forget: bool = False


class Measure(Frame, frozen=True, kw_only=True):
    """To a rehearsed worker: take steps from `start` to `end`, moments of the monotonic clock."""

    start: float
    end: float


class Cover(Frame, frozen=True, kw_only=True):
    """To a rehearsed worker: train on so many samples, from `start` on."""

    start: float
    samples: int


class Trace(Frame, frozen=True, kw_only=True):
    """To a rehearsed worker: as `Measure`, and watch its kernels."""

    start: float
    end: float


class Offer(Frame, frozen=True, kw_only=True):
    """To a worker at work: set a place on its GPU aside for its state, should that be handed over."""


class Stand(Frame, frozen=True, kw_only=True):
    """To a worker: get ready to go on with a job that another has begun, and open the place of its state."""

    job: Job
    place: Place | None = None


class Pause(Frame, frozen=True, kw_only=True):
    """To a worker at work: stop after the present step and give the state away, `by_device` or in a file.

    One that has finished meanwhile leaves it at that.
    """

    by_device: bool = False


class Continue(Frame, frozen=True, kw_only=True):
    """To a worker that stands for a job: go on with it; fields as in `Paused`."""

    layout: msgspec.Raw
    size: int
    checksum: int


class Resume(Frame, frozen=True, kw_only=True):
    """To a paused worker: go on yourself."""


class Relieve(Frame, frozen=True, kw_only=True):
    """To a worker that has paused or stands for a job: another goes on with it."""


class Leave(Frame, frozen=True, kw_only=True):
    """To a worker: finish on the device and end."""


class Advanced(Frame, frozen=True, kw_only=True):
    """Training goes on: `samples` of `total` (0: not known)."""

    task: str
    samples: int
    total: int


class Done(Frame, frozen=True, kw_only=True):
    """From a worker: its result, with the new weights in a file if it trained."""

    result: JobResult


class Failed(Frame, frozen=True, kw_only=True):
    """From a worker: the job failed, in one line."""

    error: str


class Appraised(Frame, frozen=True, kw_only=True):
    """From a worker: its task on a site.

    `samples` are those that a round trains on, E·Dᵢ, `examples` Dᵢ, `batch` is its own batch size, which a
    plan may change if it `adapts`.
    """

    samples: int
    examples: int
    batch: int
    adapts: bool


class Offered(Frame, frozen=True, kw_only=True):
    """From a worker at work: the place, or why there is none."""

    place: Place | None = None
    why: str = ""


class Standing(Frame, frozen=True, kw_only=True):
    """From a worker: it can go on at once; whether it `opened` the place offered, or why not."""

    opened: bool = False
    why: str = ""


class Paused(Frame, frozen=True, kw_only=True):
    """From a worker: its training rests, its state lies at the place offered or in the file sent.

    `layout` is that of `fedmt_flower.device.ipc.state`, of `size` bytes that have that `checksum`.
    """

    layout: msgspec.Raw
    size: int
    checksum: int


class Stays(Frame, frozen=True, kw_only=True):
    """From a worker that was to pause: its state cannot be handed over, it goes on."""

    why: str


class Taken(Frame, frozen=True, kw_only=True):
    """From a worker: another's state is in its place whole, and training goes on here."""


class Rehearsed(Frame, frozen=True, kw_only=True):
    """From a worker: its steps are warm.

    `seconds` is what that took, `memory_bytes` the most that torch held, `numerics` the settings of torch
    that decide which kernels run.
    """

    seconds: float
    memory_bytes: int
    numerics: dict[str, bool]


class Described(Frame, frozen=True, kw_only=True):
    """From a worker: `flops` and `traffic` (bytes) per sample, the kind of step that its task takes, and the
    device and the `peak` (FLOP/s) if they were asked for."""

    flops: float
    traffic: float
    device: DeviceFeatures | None
    peak: float | None = None
    step: StepKind = StepKind.EAGER


class Rested(Frame, frozen=True, kw_only=True):
    """From a worker: it holds no memory that its next step could take again."""


class Measured(Frame, frozen=True, kw_only=True):
    """From a worker: the steps that it took."""

    steps: tuple[Step, ...]


class Covered(Frame, frozen=True, kw_only=True):
    """From a worker: when its training began and ended, moments of the monotonic clock."""

    begun: float
    ended: float


class Traced(Frame, frozen=True, kw_only=True):
    """From a worker: the kernels that it ran."""

    kernels: tuple[Kernel, ...]


class Hello(Frame, frozen=True, kw_only=True):
    """To the engine, first of all: who this is, and how long to stay after it has left."""

    version: str
    idle_timeout_s: float = 0.0


class Run(Frame, frozen=True, kw_only=True):
    """To the engine: run a round; a file of weights for each task that the order brings comes along."""

    order: RoundOrder


class Inquire(Frame, frozen=True, kw_only=True):
    """To the engine: how do you do?"""


class Scrape(Frame, frozen=True, kw_only=True):
    """To the engine: tell what those who watch it want to know."""


class Welcome(Frame, frozen=True, kw_only=True):
    """From the engine: go on."""

    backend: str


class Refused(Frame, frozen=True, kw_only=True):
    """From the engine: it will not do that; `problems` are those of a configuration, one line each."""

    error: str
    problems: tuple[str, ...] = ()


class Updated(Frame, frozen=True, kw_only=True):
    """From the engine: a task is done and its new weights are in the file sent."""

    task: str


class Complete(Frame, frozen=True, kw_only=True):
    """From the engine: the round is over."""

    report: RoundReport


class WorkerStatus(Frame, frozen=True, kw_only=True):
    """A worker: `budget` in per cent is its latest, `level` what that came to, `rounds` those it served.

    While it is busy it trains for `site`, as far as `samples` of `total` (0: not known).
    """

    pid: int
    task: str
    run: str
    budget: float
    level: int
    busy: bool
    rounds: int
    site: str = ""
    samples: int = 0
    total: int = 0


class EngineStatus(Frame, frozen=True, kw_only=True):
    """From the engine: itself. `sites` counts each site's rounds; `queue` names those that wait, in order."""

    pid: int
    version: str
    backend: str
    device: str
    uptime_s: float
    rounds: int
    sites: dict[str, int]
    queue: tuple[str, ...]
    workers: tuple[WorkerStatus, ...]


class Metrics(Frame, frozen=True, kw_only=True):
    """From the engine: its metrics, in Prometheus' text format."""

    text: str


ToZygote = msgspec.json.Decoder(Fork)
FromZygote: msgspec.json.Decoder[Loaded | Forked | Failed] = msgspec.json.Decoder(Loaded | Forked | Failed)
Orders = (
    Begin
    | Do
    | Offer
    | Stand
    | Pause
    | Continue
    | Resume
    | Relieve
    | Appraise
    | Rehearse
    | Describe
    | Rest
    | Measure
    | Cover
    | Trace
    | Leave
)
Answers = (
    Ready
    | Advanced
    | Done
    | Offered
    | Standing
    | Paused
    | Stays
    | Taken
    | Appraised
    | Rehearsed
    | Described
    | Rested
    | Measured
    | Covered
    | Traced
    | Failed
)
ToWorker: msgspec.json.Decoder[Orders] = msgspec.json.Decoder(Orders)
FromWorker: msgspec.json.Decoder[Answers] = msgspec.json.Decoder(Answers)
Questions = Hello | Run | Inquire | Scrape
Replies = Welcome | Refused | Advanced | Updated | Complete | EngineStatus | Metrics
FromClient: msgspec.json.Decoder[Questions] = msgspec.json.Decoder(Questions)
FromEngine: msgspec.json.Decoder[Replies] = msgspec.json.Decoder(Replies)
