"""What all scripts here share: encoders with random weights, PEFT's adapters on them, and a clock."""

import random
import time
import warnings
from types import SimpleNamespace

warnings.filterwarnings("ignore")
import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import AutoModel, BertConfig, DebertaV2Config
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

# The six linear layers of each block.
TARGETS = (
    r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value|query_proj|key_proj|value_proj)"
    r"|attention\.output\.dense|intermediate\.dense|output\.dense)"
)
# What adapters of a classifier have in common. Without a task type PEFT leaves AdaLoRA's regularizer out.
CLASSIFIER = {
    "task_type": "SEQ_CLS",
    "target_modules": TARGETS,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "modules_to_save": ["classifier", "pooler"],
}


def encoder(shape, **settings):
    """Configuration of MiniLM-L6, or of DeBERTaV3-small or -base."""
    if shape == "minilm":
        return BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, **settings
        )
    return DebertaV2Config(
        **{"vocab_size": 128100} | settings,
        hidden_size=768,
        num_hidden_layers={"deberta-small": 6, "deberta-base": 12}[shape],
        num_attention_heads=12,
        intermediate_size=3072,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        layer_norm_eps=1e-7,
    )


def adalora_model(shape, **settings):
    """A PEFT model with AdaLoRA of rank 12 that is about to allocate: `fill`ed, its importance observed once.

    The encoder itself is never run. In its place stands a loss of 0, so that `forward` costs the regularizer alone.
    """
    adapter = AdaLoraConfig(
        target_modules=TARGETS, init_r=12, target_r=8, tinit=1, tfinal=1, deltaT=1, total_step=1000, **settings
    )
    # The embedding is one parameter that nothing here touches.
    model = get_peft_model(AutoModel.from_config(encoder(shape, vocab_size=1000)), adapter)
    model.get_base_model().forward = lambda **_: SimpleNamespace(loss=torch.tensor(0.0))
    fill(model)
    model.base_model.rankallocator.update_ipt(model.base_model.model)
    return model


def fill(model):
    """Gives every adapter parameter a value and a gradient, and returns these parameters."""
    chance = torch.Generator().manual_seed(0)
    parameters = [p for name, p in model.named_parameters() if "lora_" in name]
    for parameter in parameters:
        parameter.data.normal_(0, 0.02, generator=chance)
        parameter.grad = torch.randn(parameter.shape, generator=chance) * 1e-3
    return parameters


def in_turn(variants, rounds, before=lambda: None, warm_up=2):
    """Wall and CPU time of each call, in ms: for each name a list of pairs, one for each round.

    Every round calls each variant once, in random order, so that all see the same machine. CPU time is that of all
    threads of this process: waiting for a busy core does not count.
    """
    times = {name: [] for name in variants}
    chance = random.Random(0)
    for round in range(warm_up + rounds):
        for name in chance.sample(list(variants), len(variants)):
            before()
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            took = (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3
            if round >= warm_up:
                times[name].append(took)
    return times
