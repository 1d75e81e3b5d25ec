"""Every command of `tutelage`: where it lives, and what the overview says of it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives: a module under `tutelage.recipes`, its config class and the function that runs
    it."""

    module: str
    config: str
    help: str
    run: str = "run"
    positional: str | None = None  # the field that words without a flag belong to
    parallel: bool = False  # whether it runs in several processes, under torchrun

    def load(self) -> tuple[Any, type]:
        """The module of the recipe and its config class."""
        module = importlib.import_module(f"tutelage.recipes.{self.module}")
        return module, getattr(module, self.config)


COMMANDS = {
    "quickstart": Command(
        "quickstart", "QuickstartConfig", "the whole life of a small model, on CPU, in minutes"
    ),
    "tokenizer train": Command("tokenizer", "TokenizerTrainConfig", "learn a vocabulary from text"),
    "tokenizer inspect": Command(
        "tokenizer_inspect",
        "TokenizerInspectConfig",
        "measure how well a tokenizer fits a text, or compare two",
        positional="tokenizer",
    ),
    "pretrain": Command("pretrain", "PretrainConfig", "train a new model on plain text", parallel=True),
    "sft": Command("sft", "SFTConfig", "fine-tune a model on conversations", parallel=True),
    "dpo": Command("dpo", "DPOConfig", "learn which answers are better, by DPO or a relative", parallel=True),
    "simpo": Command(
        "simpo", "SimPOConfig", "learn which answers are better, without a reference", parallel=True
    ),
    "reward": Command("reward", "RewardConfig", "train a reward model, which scores answers", parallel=True),
    "reward score": Command(
        "reward_score", "RewardScoreConfig", "score the answers in a file", positional="ckpt_paths"
    ),
    "plan pretrain": Command("plan", "PlanPretrainConfig", "say what a pretraining run would take"),
    "plan sft": Command("plan", "PlanSFTConfig", "say what a fine-tuning run would take"),
    "data download": Command(
        "data.download",
        "DownloadConfig",
        "fetch a data set or a model from the hub, or a URL",
        positional="name",
    ),
    "data download tinystories": Command(
        "data.download_tinystories", "DownloadTinystoriesConfig", "fetch five million small stories, 1.6 GB"
    ),
    "data build stories": Command(
        "data.build_stories", "BuildStoriesConfig", "make small stories up, to pretrain and fine-tune on"
    ),
    "data build storyteller": Command(
        "data.build_storyteller",
        "BuildStorytellerConfig",
        "turn TinyStories into conversations to fine-tune on",
    ),
    "data build pretrain": Command(
        "data.build_pretrain", "BuildPretrainConfig", "tokenize text into shards, once, for pretraining"
    ),
    "data build hh_rlhf": Command(
        "data.build_preferences",
        "BuildHhRlhfConfig",
        "turn Anthropic's pairs of conversations into preferences",
        run="run_hh_rlhf",
    ),
    "data build stackexchange": Command(
        "data.build_preferences",
        "BuildStackexchangeConfig",
        "turn questions with answers and their votes into ranked answers",
        run="run_stackexchange",
    ),
    "data build piqa": Command(
        "data.build_preferences", "BuildPiqaConfig", "turn PIQA into right and wrong answers", run="run_piqa"
    ),
    "data build ultrafeedback": Command(
        "data.build_preferences",
        "BuildUltrafeedbackConfig",
        "turn UltraFeedback into ranked answers or pairs",
        run="run_ultrafeedback",
    ),
    "data build dolly": Command(
        "data.build_conversations",
        "BuildInstructionsConfig",
        "turn Dolly's instructions into conversations",
        run="run_dolly",
    ),
    "data build alpaca": Command(
        "data.build_conversations",
        "BuildInstructionsConfig",
        "turn Alpaca's instructions into conversations",
        run="run_alpaca",
    ),
    "data build squad": Command(
        "data.build_conversations",
        "BuildSquadConfig",
        "turn SQuAD's paragraphs into conversations about them",
        run="run_squad",
    ),
    "data build commonsense": Command(
        "data.build_conversations",
        "BuildCommonsenseConfig",
        "turn Commonsense-Dialogues into conversations",
        run="run_commonsense",
    ),
    "data build mathematics": Command(
        "data.build_conversations",
        "BuildMathematicsConfig",
        "turn DeepMind's Mathematics into questions and answers",
        run="run_mathematics",
    ),
    "data build gsm8k": Command(
        "data.build_conversations",
        "BuildGsm8kConfig",
        "turn GSM8K into questions answered in steps",
        run="run_gsm8k",
    ),
    "data build arc": Command(
        "data.build_choices", "BuildChoicesConfig", "turn ARC into questions with choices", run="run_arc"
    ),
    "data build hellaswag": Command(
        "data.build_choices",
        "BuildChoicesConfig",
        "turn HellaSwag into questions with choices",
        run="run_hellaswag",
    ),
    "data build winogrande": Command(
        "data.build_choices",
        "BuildChoicesConfig",
        "turn WinoGrande into questions with choices",
        run="run_winogrande",
    ),
    "data build mmlu": Command(
        "data.build_choices", "BuildChoicesConfig", "turn MMLU into questions with choices", run="run_mmlu"
    ),
    "data build truthful_qa": Command(
        "data.build_choices",
        "BuildChoicesConfig",
        "turn TruthfulQA into answers, or questions with choices",
        run="run_truthful_qa",
    ),
    "data stats": Command(
        "data.stats", "DataStatsConfig", "count rows, lengths, roles, what is cut and what comes twice"
    ),
    "data convert": Command(
        "data.convert",
        "DataConvertConfig",
        "write records of any shape as JSON lines of one",
        positional="input",
    ),
    "data import": Command(
        "data.importing",
        "DataImportConfig",
        "turn older programs' data files (.pkl, .npy, .bin) into ours",
        positional="data_path",
    ),
    "data show": Command(
        "data.show", "DataShowConfig", "print samples in colour: what is learned and what is not"
    ),
    "chat": Command("chat", "ChatConfig", "talk to a model", positional="ckpt_paths"),
    "generate": Command(
        "generate", "GenerateConfig", "complete prompts, one after another", positional="ckpt_paths"
    ),
    "merge": Command(
        "weights.merge",
        "MergeConfig",
        "put adapters into the weights of their model",
        positional="ckpt_paths",
    ),
    "convert": Command(
        "weights.convert", "ConvertConfig", "write a model in another layout", positional="ckpt_paths"
    ),
    "doctor": Command(
        "weights.doctor",
        "DoctorConfig",
        "say what a model is and what may go wrong with it",
        positional="ckpt_paths",
    ),
}
