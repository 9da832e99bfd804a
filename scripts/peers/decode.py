"""Peer timings for greedy decoding on a randomly initialised model, as JSON lines.

    python decode.py --peer hf  --config shapes/qwen2.5-0.5b.json --device cpu  --prompt 128 --new 32
    python decode.py --peer hf  --config shapes/qwen2.5-0.5b.json --device cuda --prompt 128 --new 128 --static
    python decode.py --peer mlx --config shapes/qwen2.5-0.5b.json --device cuda --prompt 128 --new 128

bf16 weights, batch 1 unless --batch is given. `tokens_per_s` counts new tokens of all rows over the
time of the decode steps, `prefill_tokens_per_s` counts prompt tokens.
"""
import argparse, json, time


def hf(o, config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(0)
    cfg = AutoConfig.for_model(config.pop("model_type"), **config)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(o.device):
        model = AutoModelForCausalLM.from_config(cfg, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(0, cfg.vocab_size, (o.batch, o.prompt), device=o.device)
    sync = torch.cuda.synchronize if o.device == "cuda" else (lambda: None)

    def run(new):
        kw = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        if o.static:
            kw["cache_implementation"] = "static"
        with torch.no_grad():
            start = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), **kw)
            sync()
        return time.perf_counter() - start
    return run


def mlx(o, config):
    import importlib
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    mx.set_default_device(mx.gpu if o.device == "cuda" else mx.cpu)
    mx.random.seed(0)
    arch = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = arch.Model(arch.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    ids = mx.random.randint(0, config["vocab_size"], (o.batch, o.prompt))
    mx.eval(model.parameters(), ids)

    def run(new):
        cache = make_prompt_cache(model)
        start = time.perf_counter()
        token = mx.argmax(model(ids, cache=cache)[:, -1:], axis=-1)
        mx.async_eval(token)
        for _ in range(new - 1):
            following = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
            mx.async_eval(following)
            token.tolist()
            token = following
        mx.eval(token)
        return time.perf_counter() - start
    return run


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", choices=["hf", "mlx"], required=True)
    p.add_argument("--config", required=True)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=32)
    p.add_argument("--static", action="store_true", help="hf: compiled decode over a static cache")
    o = p.parse_args()
    run = {"hf": hf, "mlx": mlx}[o.peer](o, json.load(open(o.config)))
    run(o.new)
    first, whole = min(run(1) for _ in range(2)), min(run(o.new) for _ in range(2))
    decode = (whole - first) / (o.new - 1)
    print(json.dumps(dict(peer=o.peer, model=o.config.rsplit("/", 1)[-1].removesuffix(".json"), device=o.device,
                          batch=o.batch, prompt=o.prompt, static=o.static, tokens_per_s=round(o.batch / decode, 1),
                          ms_per_step=round(decode * 1e3, 3), prefill_tokens_per_s=round(o.batch * o.prompt / first))), flush=True)
