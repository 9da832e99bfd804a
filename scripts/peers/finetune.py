"""Peer timings for one LoRA fine-tuning step on a randomly initialised model, as JSON lines.

    python finetune.py --peer peft --config shapes/qwen2.5-0.5b.json --device cuda --batch 8 --length 512 [--compile] [--liger] [--checkpoint]
    python finetune.py --peer mlx  --config shapes/qwen2.5-0.5b.json --device cuda --batch 8 --length 512

LoRA rank 16, alpha 32, no dropout, on all seven projections of every layer, bf16 base weights,
AdamW, one step = forward + loss + backward + update on batch x length tokens, every token supervised.
`tokens_per_s` is batch * length over the median step; `peak_gib` is the allocator's peak on a GPU
and the process's resident peak on a CPU.
"""
import argparse, json, resource, time

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_steps(o, config):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(0)
    kind = config.pop("model_type")
    cfg = AutoConfig.for_model(kind, **config)
    if o.liger:
        import liger_kernel.transformers as liger
        getattr(liger, f"apply_liger_kernel_to_{kind}")()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(o.device):
        model = AutoModelForCausalLM.from_config(cfg, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
    if o.checkpoint:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=o.device == "cuda")
    run = torch.compile(model) if o.compile else model
    ids = torch.randint(0, cfg.vocab_size, (o.batch, o.length), device=o.device)
    sync = torch.cuda.synchronize if o.device == "cuda" else (lambda: None)

    def step():
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sync()
        return loss.item()

    peak = (lambda: torch.cuda.max_memory_allocated() / 2**30) if o.device == "cuda" else resident
    return step, peak


def mlx_steps(o, config):
    import importlib
    import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim
    from mlx_lm.tuner.utils import linear_to_lora_layers
    mx.set_default_device(mx.gpu if o.device == "cuda" else mx.cpu)
    mx.random.seed(0)
    arch = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = arch.Model(arch.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    model.freeze()
    keys = [f"self_attn.{t}" for t in TARGETS[:4]] + [f"mlp.{t}" for t in TARGETS[4:]]
    linear_to_lora_layers(model, config["num_hidden_layers"], dict(rank=16, scale=2.0, dropout=0.0, keys=keys))
    model.train()
    optimizer = optim.AdamW(learning_rate=1e-4)
    ids = mx.random.randint(0, config["vocab_size"], (o.batch, o.length))
    state = [model.state, optimizer.state, mx.random.state]

    def loss_fn(model, ids):
        logits = model(ids[:, :-1])
        return nn.losses.cross_entropy(logits, ids[:, 1:]).mean()

    value_and_grad = nn.value_and_grad(model, loss_fn)

    def raw(ids):
        loss, grads = value_and_grad(model, ids)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(raw, inputs=state, outputs=state)

    def step():
        loss = compiled(ids)
        mx.eval(state, loss)
        return loss.item()

    peak = (lambda: mx.get_peak_memory() / 2**30) if o.device == "cuda" else resident
    return step, peak


def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", choices=["peft", "mlx"], required=True)
    p.add_argument("--config", required=True)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--warmup", type=int, default=3)
    for flag in ("compile", "liger", "checkpoint"):
        p.add_argument(f"--{flag}", action="store_true")
    o = p.parse_args()
    name = o.config.rsplit("/", 1)[-1].removesuffix(".json")
    step, peak = {"peft": peft_steps, "mlx": mlx_steps}[o.peer](o, json.load(open(o.config)))
    for _ in range(o.warmup):
        step()
    times = []
    for _ in range(o.steps):
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    median = sorted(times)[len(times) // 2]
    print(json.dumps(dict(peer=o.peer, model=name, device=o.device, batch=o.batch, length=o.length,
                          compile=o.compile, liger=o.liger, checkpoint=o.checkpoint, step_ms=round(median * 1e3, 2),
                          tokens_per_s=round(o.batch * o.length / median), peak_gib=round(peak(), 2), loss=round(loss, 4))), flush=True)
