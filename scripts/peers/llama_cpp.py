"""llama.cpp timings on a randomly initialised GGUF, as JSON lines.

    python llama_cpp.py --config shapes/qwen2.5-0.5b.json --dtype bf16|q8_0|q4_0 [--prompt 128 --new 32]

Writes the GGUF (llama or qwen2 architecture, no vocabulary) beside itself in a temporary folder,
evaluates a prompt and then single tokens on two threads. Needs `llama-cpp-python` and `gguf`.
"""
import argparse, json, os, sys, tempfile, time

# This file's folder is searched first, where this file would shadow the package.
sys.path.pop(0)


def write_gguf(path, cfg, dtype):
    import gguf, numpy as np
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    writer = gguf.GGUFWriter(path, cfg["model_type"])
    hidden, inner, layers, vocab = (cfg[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    heads, kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
    head = cfg.get("head_dim", hidden // heads)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    writer.add_rope_freq_base(cfg["rope_theta"])
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        values = rng.standard_normal(shape, dtype=np.float32) * 0.02
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vector(name, size, value):
        writer.add_tensor(name, np.full(size, value, np.float32))

    weight("token_embd.weight", vocab, hidden)
    vector("output_norm.weight", hidden, 1.0)
    if not cfg.get("tie_word_embeddings"):
        weight("output.weight", vocab, hidden)
    for i in range(layers):
        at = f"blk.{i}."
        vector(at + "attn_norm.weight", hidden, 1.0)
        vector(at + "ffn_norm.weight", hidden, 1.0)
        for name, rows, cols in (("attn_q", heads * head, hidden), ("attn_k", kv * head, hidden), ("attn_v", kv * head, hidden),
                                 ("attn_output", hidden, heads * head), ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden), ("ffn_down", hidden, inner)):
            weight(at + name + ".weight", rows, cols)
        if cfg["model_type"] == "qwen2":
            for name, rows in (("attn_q", heads * head), ("attn_k", kv * head), ("attn_v", kv * head)):
                vector(at + name + ".bias", rows, 0.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", required=True)
    p.add_argument("--dtype", choices=["bf16", "q8_0", "q4_0"], default="bf16")
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=32)
    p.add_argument("--threads", type=int, default=2)
    o = p.parse_args()
    from llama_cpp import Llama
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "random.gguf")
        write_gguf(path, json.load(open(o.config)), o.dtype)
        model = Llama(path, n_ctx=1024, n_threads=o.threads, n_threads_batch=o.threads, verbose=True)
        best = [1e9, 1e9]
        for _ in range(3):
            model.reset()
            start = time.perf_counter()
            model.eval([1000 + 7 * i for i in range(o.prompt)])
            best[0] = min(best[0], time.perf_counter() - start)
            start = time.perf_counter()
            for i in range(o.new):
                model.eval([1234 + i])
            best[1] = min(best[1], (time.perf_counter() - start) / o.new)
    print(json.dumps(dict(peer="llama.cpp", model=o.config.rsplit("/", 1)[-1].removesuffix(".json"), device="cpu", dtype=o.dtype, batch=1,
                          prompt=o.prompt, tokens_per_s=round(1 / best[1], 1), ms_per_step=round(best[1] * 1e3, 3),
                          prefill_tokens_per_s=round(o.prompt / best[0]))), flush=True)
