"""Section `training`: processes, epochs and optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lam_spark.config.base import Section


class TrainingConfig(Section):
    """Training in three phases: pre-training on all events, fine-tuning on the examples, and a refit.

    The refit trains on the training and validation periods for the number of epochs that validation selected.
    """

    launcher: Literal["horovod", "horovod_spark", "torch", "torch_spark", "in_process"] = Field(
        default="horovod",
        description="what starts the processes; `_spark`: as tasks of the Spark session; `in_process`: one process",
    )
    world_size: int = Field(default=2, ge=1, description="number of processes")
    threads_per_rank: int = Field(default=1, ge=1, description="CPU threads per process")
    seed: int = Field(default=20171002, ge=0, description="random seed")
    pretrain_epochs: int = Field(
        default=2, ge=0, description="epochs of next-event pre-training on all events"
    )
    finetune_epochs: int = Field(
        default=4, ge=1, description="most epochs of fine-tuning; validation selects the number"
    )
    patience: int = Field(
        default=1, ge=1, description="epochs without a better validation loss before fine-tuning stops"
    )
    validation_blocks: int = Field(
        default=1_000_000, ge=1, description="most blocks (approximately) that validate an epoch"
    )
    micro_batch_size: int = Field(default=4, ge=1, description="blocks per process and forward pass")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="micro-batches per optimiser step")
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = Field(
        default="none",
        description="scaling of the learning rates with the micro-batches per step of all processes",
    )
    fp16_gradient_compression: bool = Field(
        default=False, description="exchange gradients as 16-bit numbers: half the traffic"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, about a third more time",
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="learning rate of pre-training")
    finetune_learning_rate: float = Field(default=1e-3, gt=0, description="learning rate of fine-tuning")
    weight_decay: float = Field(
        default=0.05,
        ge=0,
        description="weight decay of matrices and embeddings; norm scales and biases have none",
    )
    next_event_weight: float = Field(
        default=0.1, ge=0, description="weight of the next-event loss in fine-tuning"
    )
    contrastive_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the contrastive loss between customers (CoLES) in pre-training",
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="largest gradient norm; larger gradients are clipped"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="precision of matrix products; bfloat16 (autocast) requires a GPU that has it",
    )
    compile: bool = Field(
        default=False,
        description="compile the model with torch.compile: about a minute, then faster steps on GPUs",
    )
    checkpoint_minutes: float = Field(
        default=10, ge=0, description="minutes between checkpoints; 0: after each step"
    )
    experiment: str = Field(default="lam_spark", description="MLflow experiment")

    @model_validator(mode="after")
    def _in_process_is_one_process(self) -> TrainingConfig:
        if self.launcher == "in_process" and self.world_size != 1:
            raise ValueError(f"expected world_size 1 with launcher in_process, got {self.world_size}")
        return self
