"""Named experiments: what each notebook does at ``quick``, ``laptop`` and ``gpu``."""

from dataclasses import dataclass, replace

from galnb.gans.deblender import DeblenderConfig
from galnb.gans.lightweight import LightweightConfig
from galnb.gans.radio import RadioConfig
from galnb.training import TrainingConfig

PRESETS = ("quick", "laptop", "gpu")


@dataclass(frozen=True)
class Experiment:
    """Say how much a notebook without training does.

    Parameters
    ----------
    minutes, memory_gib : float
        What to expect on two cores (``gpu``: on one current GPU).
    images, blends : int
        Galaxies to load and blends to make; 0 for all.

    Notes
    -----
    Chapter: How to run
    """

    minutes: float
    memory_gib: float
    images: int = 0
    blends: int = 0


@dataclass(frozen=True)
class DeblenderExperiment:
    """Say how a deblender is trained: on what, which networks, for how long.

    Parameters
    ----------
    minutes, memory_gib : float
        What to expect on two cores (``gpu``: on one current GPU).
    model : DeblenderConfig
        The networks.
    training : TrainingConfig
        The run.
    batch_size : int
        Blends per step.
    images : int
        Galaxies to load; 0 for all.
    rule, fill : str
        How light adds up, and what fills the uncovered frame.

    Notes
    -----
    Chapter: The deblender GAN
    """

    minutes: float
    memory_gib: float
    model: DeblenderConfig
    training: TrainingConfig
    batch_size: int = 16
    images: int = 0
    rule: str = "max"
    fill: str = "zeros"


@dataclass(frozen=True)
class GanExperiment:
    """Say how a GAN that draws galaxies from random numbers is trained.

    Parameters
    ----------
    minutes, memory_gib : float
        What to expect on two cores (``gpu``: on one current GPU).
    model : LightweightConfig or RadioConfig
        The networks.
    training : TrainingConfig
        The run; a step is one of the generator.
    batch_size : int
        Images per discriminator step.
    images : int
        Images to load; 0 for all.

    Notes
    -----
    Chapters: First GAN, A GAN for radio galaxies, New galaxies
    """

    minutes: float
    memory_gib: float
    model: LightweightConfig | RadioConfig
    training: TrainingConfig
    batch_size: int = 32
    images: int = 0


_SMALL = {"discriminator_width": 16, "dense": 32}
_QUICK = DeblenderExperiment(
    minutes=1,
    memory_gib=2.5,
    model=DeblenderConfig(width=16, root_blocks=2, branch_blocks=1, reconstruction="log_mse", **_SMALL),
    training=TrainingConfig(
        steps=120,
        burn_in=20,
        warmup=40,
        learning_rate=1e-3,
        schedule="cosine",
        channels_last=True,
        save_every=60,
    ),
    batch_size=4,
)
_QUICK_BOUNDED = DeblenderExperiment(
    minutes=1,
    memory_gib=2,
    model=DeblenderConfig(
        generator="gated", widths=(24, 48, 64, 64), blocks=(1, 1, 1, 1), reconstruction="log_mse", **_SMALL
    ),
    training=TrainingConfig(
        steps=140,
        learning_rate=3e-3,
        discriminator_learning_rate=2e-4,
        schedule="cosine",
        channels_last=True,
        save_every=70,
    ),
    batch_size=8,
)
_PAPER = {
    "laptop": DeblenderExperiment(
        minutes=120,
        memory_gib=4,
        model=DeblenderConfig(width=16, **_SMALL),
        training=TrainingConfig(
            steps=5_000,
            burn_in=50,
            warmup=200,
            learning_rate=3e-4,  # at 1e-3 tanh saturates: black for ever after 300 steps
            discriminator_learning_rate=1e-4,
            save_every=250,
            # at one in a hundred, the end of the burn-in, the discriminator has seen nothing yet
            stages=(("early", 0.02), ("middle", 0.3), ("final", 1.0)),
        ),
        batch_size=4,
    ),
    "gpu": DeblenderExperiment(
        minutes=600,
        memory_gib=8,
        model=DeblenderConfig(),
        training=TrainingConfig(
            steps=202_000, burn_in=2_000, precision="bf16-mixed", channels_last=True, save_every=2_000
        ),
        batch_size=16,
    ),
}
_GATED = {
    "reconstruction": "log_mse",
    "generator": "gated",
    **_SMALL,
}
_BOUNDED = {
    "laptop": DeblenderExperiment(
        minutes=120,
        memory_gib=6,
        model=DeblenderConfig(**_GATED),
        training=TrainingConfig(
            steps=9_000,
            learning_rate=2e-3,
            discriminator_learning_rate=2e-4,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
            schedule="late_decay",
            warmup=200,
            discriminator_every=4,
            ema=0.999,
            gradient_clip=1.0,
            channels_last=True,
            save_every=250,
        ),
        batch_size=16,
    ),
    "gpu": DeblenderExperiment(
        minutes=240,
        memory_gib=10,
        model=DeblenderConfig(
            **{**_GATED, "widths": (96, 192, 288, 384), "discriminator_width": 64, "dense": 1024}
        ),
        training=TrainingConfig(
            steps=200_000,
            learning_rate=2e-3,
            discriminator_learning_rate=2e-4,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
            schedule="late_decay",
            warmup=1_000,
            discriminator_every=4,
            ema=0.9995,
            gradient_clip=1.0,
            precision="bf16-mixed",
            channels_last=True,
            compile=True,
            save_every=2_000,
        ),
        batch_size=64,
    ),
}
# The same networks learn from each fill in turn; the generator paints, as that of Li et al. does.
_PHANTOM = {
    preset: DeblenderExperiment(
        minutes=minutes,
        memory_gib=2,
        model=DeblenderConfig(generator="unet", widths=(24, 48, 64, 64), blocks=(1, 1, 1, 1), **_SMALL),
        training=TrainingConfig(
            steps=steps,
            learning_rate=2e-3,
            discriminator_learning_rate=3e-4,
            schedule="late_decay",
            warmup=50,
            channels_last=True,
            save_every=min(300, steps),
            stages=(("final", 1.0),),
        ),
        batch_size=8,
    )
    for preset, steps, minutes in (("quick", 60, 1), ("laptop", 900, 90), ("gpu", 20_000, 200))
}
# Weights that take maxima apart go on to sums; a sum may be darker than its galaxies where noise is added.
_SUM = {
    name: replace(
        chosen,
        model=replace(chosen.model, headroom=0.1),
        training=replace(chosen.training, steps=max(140, chosen.training.steps // 6), learning_rate=1e-3),
        rule="sum",
    )
    for name, chosen in {"quick": _QUICK_BOUNDED, **_BOUNDED}.items()
}


def every(steps: int, count: int) -> tuple[tuple[str, float], ...]:
    """Name `count` checkpoints at equal distances after their steps.

    Chapter: A GAN for radio galaxies
    """
    return tuple((f"step{steps * part // count}", part / count) for part in range(1, count + 1))


_RADIO_TRAINING = TrainingConfig(
    steps=1_750,
    learning_rate=1e-3,  # the published 1e-4 needs the published 20,000 steps
    discriminator_learning_rate=1e-3,
    betas=(0.0, 0.9),
    schedule="late_decay",
    discriminator_steps=5,
    save_every=125,
    stages=every(1_750, 7),
)
_RADIO = {
    "quick": GanExperiment(
        minutes=1,
        memory_gib=1.5,
        model=RadioConfig(width=8),
        training=replace(_RADIO_TRAINING, steps=50, save_every=50, stages=(("final", 1.0),)),
        batch_size=16,
        images=400,
    ),
    "laptop": GanExperiment(minutes=25, memory_gib=2, model=RadioConfig(width=12), training=_RADIO_TRAINING),
    "gpu": GanExperiment(
        minutes=600,
        memory_gib=8,
        model=RadioConfig(size=128),
        training=replace(
            _RADIO_TRAINING,
            steps=20_000,
            learning_rate=1e-4,
            discriminator_learning_rate=1e-4,
            schedule="constant",
            save_every=500,
            stages=every(20_000, 40),
        ),
        batch_size=300,
    ),
}
_RADIO_SMEARED = {
    name: replace(chosen, model=replace(chosen.model, sigma=1.0)) for name, chosen in _RADIO.items()
}
_LIGHTWEIGHT_TRAINING = TrainingConfig(
    steps=12_000,
    learning_rate=4e-4,  # batches of 8; the published 2e-4 is for more patience
    discriminator_learning_rate=4e-4,
    betas=(0.5, 0.9),
    schedule="late_decay",
    ema=0.999,
    save_every=500,
    stages=(*every(12_000, 12)[:-1], ("final", 1.0)),
)
_LIGHTWEIGHT = {
    "quick": GanExperiment(
        minutes=1,
        memory_gib=1.5,
        model=LightweightConfig(width=8, widest=64, latent=64),
        training=replace(
            _LIGHTWEIGHT_TRAINING,
            steps=120,
            learning_rate=1e-3,
            discriminator_learning_rate=1e-3,
            ema=0.98,
            save_every=120,
            stages=(("final", 1.0),),
        ),
        batch_size=8,
    ),
    "laptop": GanExperiment(
        minutes=60,
        memory_gib=2,
        model=LightweightConfig(width=16, widest=128, latent=128),
        training=_LIGHTWEIGHT_TRAINING,
        batch_size=8,
    ),
    "gpu": GanExperiment(
        minutes=600,
        memory_gib=8,
        model=LightweightConfig(size=256),
        training=replace(
            _LIGHTWEIGHT_TRAINING,
            steps=150_000,
            learning_rate=2e-4,
            discriminator_learning_rate=2e-4,
            precision="bf16-mixed",
            channels_last=True,
            save_every=2_000,
            stages=every(150_000, 10),
        ),
        batch_size=16,
    ),
}


def _same(experiment: Experiment) -> dict[str, Experiment]:
    return dict.fromkeys(PRESETS, experiment)


EXPERIMENTS = {
    "01_images": _same(Experiment(minutes=0.5, memory_gib=1.5)),
    "02_blending": _same(Experiment(minutes=0.5, memory_gib=1.5)),
    "03_first_gan": {
        "quick": Experiment(minutes=1, memory_gib=1.5),
        "laptop": Experiment(minutes=30, memory_gib=2),
        "gpu": Experiment(minutes=10, memory_gib=2),
    },
    "04_deblender": {"quick": _QUICK, **_PAPER},
    "05_evaluation": {
        "quick": Experiment(minutes=1, memory_gib=2.5, blends=150),
        "laptop": Experiment(minutes=10, memory_gib=4.5, blends=1000),
        "gpu": Experiment(minutes=5, memory_gib=4.5, blends=1000),
    },
    "06_polarized_lrp": {
        "quick": Experiment(minutes=1, memory_gib=2),
        "laptop": Experiment(minutes=60, memory_gib=3),
        "gpu": Experiment(minutes=90, memory_gib=6),
    },
    "07_training_stages": {
        "quick": Experiment(minutes=1, memory_gib=2, blends=200),
        "laptop": Experiment(minutes=3, memory_gib=3, blends=400),
        "gpu": Experiment(minutes=1, memory_gib=3, blends=400),
    },
    "08_explorer": _same(Experiment(minutes=0.5, memory_gib=1.5)),
    "09_phantom_boundary": {
        "quick": Experiment(minutes=1, memory_gib=2, blends=100),
        "laptop": Experiment(minutes=60, memory_gib=3, blends=300),
        "gpu": Experiment(minutes=20, memory_gib=3, blends=300),
    },
    "10_radio_gan": {
        "quick": Experiment(minutes=1, memory_gib=2, images=400),
        "laptop": Experiment(minutes=5, memory_gib=3),
        "gpu": Experiment(minutes=2, memory_gib=3),
    },
    "11_smearing": {
        "quick": Experiment(minutes=1, memory_gib=2, images=400),
        "laptop": Experiment(minutes=5, memory_gib=3),
        "gpu": Experiment(minutes=2, memory_gib=3),
    },
    "12_systematics": {
        "quick": Experiment(minutes=1, memory_gib=2, images=400),
        "laptop": Experiment(minutes=120, memory_gib=3),
        "gpu": Experiment(minutes=60, memory_gib=3),
    },
    "13_lightweight_gan": {
        "quick": Experiment(minutes=1, memory_gib=2, images=300),
        "laptop": Experiment(minutes=15, memory_gib=3, images=1000),
        "gpu": Experiment(minutes=10, memory_gib=3, images=1000),
    },
    "14_mosaic": {
        "quick": Experiment(minutes=1, memory_gib=2, images=300),
        "laptop": Experiment(minutes=5, memory_gib=4, images=3000),
        "gpu": Experiment(minutes=5, memory_gib=4, images=3000),
    },
    "deblender-paper": {"quick": _QUICK, **_PAPER},
    "deblender-bounded": {"quick": _QUICK_BOUNDED, **_BOUNDED},
    "deblender-sum": _SUM,
    "lightweight-64": _LIGHTWEIGHT,
    "phantom": _PHANTOM,
    "radio-plain": _RADIO,
    "radio-smeared": _RADIO_SMEARED,
}


def experiment(name: str, preset: str) -> Experiment | DeblenderExperiment | GanExperiment:
    """Look up what a notebook or a training run does at a preset.

    Parameters
    ----------
    name : str
        A notebook such as ``"04_deblender"``, or shipped weights such as ``"deblender-bounded"``.
    preset : str
        ``"quick"``, ``"laptop"`` or ``"gpu"``.

    Returns
    -------
    Experiment, DeblenderExperiment or GanExperiment

    Raises
    ------
    ValueError
        If either name is unknown; the message lists the known ones.

    Notes
    -----
    Chapter: How to run
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment is named {name!r}; known are {sorted(EXPERIMENTS)}")
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; known are {', '.join(PRESETS)}")
    return EXPERIMENTS[name][preset]
