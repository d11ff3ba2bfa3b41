//! Every way between schemes, on trees whose sizes never coincide: no wrong transpose is right by luck.

mod tree;

use std::sync::atomic::AtomicBool;

use orbax::{Dtype, Order};
use remap::{Fault, Lora, Map, Memory, Mover, Options, Pairs, Plan, Settings, Tie};
use tree::{Arrays, Model, jax};

const SCHEMES: [&str; 5] = ["jax", "burn", "openpi-torch", "lerobot", "giga"];

fn options() -> Options {
    Options { heads: tree::heads(), ..Options::default() }
}

fn convert(arrays: &Arrays, from: &str, to: &str, options: &Options, slab_bytes: u64) -> Arrays {
    let map = Map::pi0();
    let (from, to) = (map.scheme(from).unwrap(), map.scheme(to).unwrap());
    let tensors = arrays.tensors();
    let plan = Plan::new(&map, &tensors, from, to, options).unwrap_or_else(|e| panic!("{e}"));
    let all: Vec<usize> = (0..tensors.len()).collect();
    let memory = Memory::new(&plan);
    let stop = AtomicBool::new(false);
    let deltas = (options.lora == Lora::Merge).then(|| {
        let pairs = Pairs::read(&map, &tensors, from, arrays, &all, None).unwrap();
        pairs.deltas(&map, &tensors, from, options).unwrap()
    });
    let settings = Settings { threads: 2, slab_bytes };
    let mover = Mover::new(&plan, arrays, &all, deltas.as_ref(), settings, &stop);
    mover.run(&mover.units(|_| true), &memory).unwrap();
    let data = memory.bytes.into_iter().map(|m| m.into_inner().unwrap());
    Arrays::new(plan.outputs.iter().map(|o| o.tensor.clone()).zip(data).collect())
}

#[test]
fn every_path_between_schemes_comes_home() {
    for model in [Model::Pi0, Model::Pi05, Model::Fast] {
        let home = jax(model, false);
        for a in SCHEMES {
            let there = convert(&home, "jax", a, &options(), 1 << 20);
            for b in SCHEMES {
                let further = convert(&there, a, b, &options(), 1 << 20);
                assert_eq!(further, convert(&home, "jax", b, &options(), 1 << 20), "{model:?}: {a} to {b}");
            }
            assert_eq!(convert(&there, a, "jax", &options(), 1 << 20), home, "{model:?}: {a} and home");
        }
    }
}

#[test]
fn low_rank_pairs_come_home_too() {
    for model in [Model::Pi0, Model::Pi05, Model::Fast] {
        let home = jax(model, true);
        let there = convert(&home, "jax", "burn", &options(), 1 << 20);
        assert!(there.get("llm.blocks.2.experts.0.o.lora_b").is_some());
        assert_eq!(convert(&there, "burn", "jax", &options(), 1 << 20), home);
    }
}

/// openpi's converter, transcribed for one layer as an independent witness (slice_gemma_state_dict).
#[test]
fn the_torch_side_is_what_openpi_slices() {
    let home = jax(Model::Pi05, false);
    let torch = convert(&home, "jax", "openpi-torch", &options(), 1 << 20);
    let (i, n, h, w, f) = (2, tree::N, tree::H, tree::W[1], tree::F[1]);
    let layer = "paligemma_with_expert.gemma_expert.model.layers.2";
    // attn_vec_einsum [L N H W]: reshape(N * H, W).T
    let o = home.f32("PaliGemma/llm/layers/attn/attn_vec_einsum_1/w");
    let t = torch.f32(&format!("{layer}.self_attn.o_proj.weight"));
    for a in 0..w {
        for b in 0..n * h {
            assert_eq!(t[a * n * h + b], o[(i * n * h + b) * w + a]);
        }
    }
    // q_einsum [L N W H]: transpose(0, 2, 1).reshape(N * H, W)
    let q = home.f32("PaliGemma/llm/layers/attn/q_einsum_1/w");
    let t = torch.f32(&format!("{layer}.self_attn.q_proj.weight"));
    for a in 0..n {
        for b in 0..h {
            for c in 0..w {
                assert_eq!(t[(a * h + b) * w + c], q[((i * n + a) * w + c) * h + b]);
            }
        }
    }
    // kv_einsum [L 2 1 W H]: [i, 1, 0].T
    let kv = home.f32("PaliGemma/llm/layers/attn/kv_einsum_1/w");
    let t = torch.f32(&format!("{layer}.self_attn.v_proj.weight"));
    for a in 0..h {
        for c in 0..w {
            assert_eq!(t[a * w + c], kv[((i * 2 + 1) * w + c) * h + a]);
        }
    }
    // gating_einsum [L 2 W F]: [i, 1].T is up
    let g = home.f32("PaliGemma/llm/layers/mlp_1/gating_einsum");
    let t = torch.f32(&format!("{layer}.mlp.up_proj.weight"));
    for a in 0..f {
        for c in 0..w {
            assert_eq!(t[a * w + c], g[((i * 2 + 1) * w + c) * f + a]);
        }
    }
    // img embedding [P Q C D]: transpose(3, 2, 0, 1)
    let e = home.f32("PaliGemma/img/embedding/kernel");
    let name = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.patch_embedding.weight";
    let t = torch.f32(name);
    let (p, c, d) = (tree::P, 3, tree::D);
    for x in 0..d {
        for y in 0..c {
            for u in 0..p {
                for v in 0..p {
                    assert_eq!(t[((x * c + y) * p + u) * p + v], e[((u * p + v) * c + y) * d + x]);
                }
            }
        }
    }
}

#[test]
fn chunks_order_and_slab_size_do_not_matter() {
    let home = jax(Model::Pi0, true);
    for to in ["burn", "jax"] {
        let expected = convert(&home, "jax", to, &options(), 1 << 20);
        for (seed, order) in [(1, Order::C), (2, Order::F), (3, Order::C), (4, Order::F)] {
            for slab in [1, 64, 4096] {
                let cut = home.clone().cut(seed, order);
                assert_eq!(convert(&cut, "jax", to, &options(), slab), expected, "{to} {seed} {order:?} {slab}");
            }
        }
    }
    let torch = convert(&home, "jax", "openpi-torch", &Options { lora: Lora::Drop, ..options() }, 1 << 20);
    let cut = torch.clone().cut(5, Order::F);
    assert_eq!(
        convert(&cut, "openpi-torch", "jax", &options(), 100),
        convert(&torch, "openpi-torch", "jax", &options(), 1 << 20)
    );
}

#[test]
fn a_merged_weight_is_the_sum_in_f64_rounded_once() {
    let home = jax(Model::Pi0, true);
    let merge = Options { lora: Lora::Merge, ..options() };
    let merged = convert(&home, "jax", "jax", &merge, 700);
    assert!(merged.names().all(|n| !n.contains("lora")));
    let (l, n, h, r) = (tree::L, tree::N, tree::H, tree::R);
    for (e, suffix) in [(0, ""), (1, "_1")] {
        let w = tree::W[e];
        let at = |name: &str| home.f32(&format!("PaliGemma/llm/layers/attn/{name}"));
        // attn_vec: b is summed over the heads before the product.
        let base = at(&format!("attn_vec_einsum{suffix}/w"));
        let (a, b) = (at(&format!("attn_vec_einsum{suffix}/lora_a")), at(&format!("attn_vec_einsum{suffix}/lora_b")));
        let found = merged.f32(&format!("PaliGemma/llm/layers/attn/attn_vec_einsum{suffix}/w"));
        for i in 0..l * n * h * w {
            let (x, rest) = (i % w, i / w);
            let (layer, nh) = (rest / (n * h), rest % (n * h));
            let delta: f64 = (0..r)
                .map(|k| {
                    let b: f64 = (0..n).map(|m| f64::from(b[((layer * n + m) * r + k) * w + x])).sum();
                    f64::from(a[(layer * n * h + nh) * r + k]) * b
                })
                .sum();
            assert_eq!(found[i], (f64::from(base[i]) + delta) as f32, "attn_vec{suffix} {i}");
        }
        // q: a pair for each head.
        let base = at(&format!("q_einsum{suffix}/w"));
        let (a, b) = (at(&format!("q_einsum{suffix}/lora_a")), at(&format!("q_einsum{suffix}/lora_b")));
        let found = merged.f32(&format!("PaliGemma/llm/layers/attn/q_einsum{suffix}/w"));
        for i in 0..l * n * w * h {
            let (y, x, ln) = (i % h, i / h % w, i / h / w);
            let delta: f64 =
                (0..r).map(|k| f64::from(a[(ln * w + x) * r + k]) * f64::from(b[(ln * r + k) * h + y])).sum();
            assert_eq!(found[i], (f64::from(base[i]) + delta) as f32, "q{suffix} {i}");
        }
    }
    // Merged first and converted, or merged on the way: the same.
    for to in ["burn", "openpi-torch", "giga"] {
        assert_eq!(convert(&home, "jax", to, &merge, 500), convert(&merged, "jax", to, &options(), 500), "{to}");
    }
    // And from pairs kept in the canonical scheme.
    let burn = convert(&home, "jax", "burn", &options(), 1 << 20);
    assert_eq!(convert(&burn, "burn", "jax", &merge, 300), merged);
}

#[test]
fn a_peft_adapter_adds_what_merging_adds() {
    let home = jax(Model::Pi0, true);
    let map = Map::pi0();
    let (from, to) = (map.scheme("jax").unwrap(), map.scheme("openpi-torch").unwrap());
    let all: Vec<usize> = (0..home.tensors().len()).collect();
    let pairs = Pairs::read(&map, &home.tensors(), from, &home, &all, None).unwrap();
    let adapter = pairs.peft(&map, to);
    assert_eq!(adapter.modules, 2 * 7 * tree::L);
    let file = safetensors::SafeTensors::deserialize(&adapter.tensors).unwrap();
    let merged = convert(&home, "jax", "openpi-torch", &Options { lora: Lora::Merge, ..options() }, 1 << 20);
    let base = convert(&home, "jax", "openpi-torch", &Options { lora: Lora::Drop, ..options() }, 1 << 20);
    let floats = |name: &str| -> (Vec<usize>, Vec<f64>) {
        let view = file.tensor(name).unwrap();
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
        (view.shape().to_vec(), values.collect())
    };
    let mut compared = 0;
    for module in adapter.config["target_modules"].as_array().unwrap() {
        let module = module.as_str().unwrap();
        let (sa, a) = floats(&format!("base_model.model.{module}.lora_A.weight"));
        let (sb, b) = floats(&format!("base_model.model.{module}.lora_B.weight"));
        let (out, rank, inner) = (sb[0], sa[0], sa[1]);
        assert_eq!(sb[1], rank);
        let scale = adapter.config["alpha_pattern"][module].as_f64().unwrap() / rank as f64;
        let (base, merged) = (base.f32(&format!("{module}.weight")), merged.f32(&format!("{module}.weight")));
        assert_eq!(base.len(), out * inner);
        for i in 0..out * inner {
            let delta: f64 = (0..rank).map(|k| b[i / inner * rank + k] * a[k * inner + i % inner]).sum();
            let difference = (f64::from(base[i]) + scale * delta - f64::from(merged[i])).abs();
            assert!(difference <= 1e-6 * f64::from(merged[i]).abs().max(1.0), "{module} {i}: {difference}");
            compared += 1;
        }
    }
    assert!(compared > 1000);
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let map = Map::pi0();
    let (jax_scheme, burn) = (map.scheme("jax").unwrap(), map.scheme("burn").unwrap());
    let mut home = jax(Model::Pi0, false);
    home.rename("action_in_proj/kernel", "action_in_proj/kernal");
    home.remove("PaliGemma/llm/final_norm_1/scale");
    home.reshape("action_out_proj/bias", &[1, 3]);
    let faults = Plan::new(&map, &home.tensors(), jax_scheme, burn, &options()).unwrap_err().faults;
    let unknown = |f: &Fault| {
        matches!(f, Fault::Unknown { name, nearest }
            if name == "action_in_proj/kernal" && nearest.as_deref() == Some("action_in_proj/kernel"))
    };
    assert!(faults.iter().any(unknown), "{faults:#?}");
    for missing in ["PaliGemma/llm/final_norm_1/scale", "action_in_proj/kernel"] {
        let hole = |f: &Fault| matches!(f, Fault::Hole { name, .. } if name == missing);
        assert!(faults.iter().any(hole), "{missing}: {faults:#?}");
    }
    let shape = |f: &Fault| matches!(f, Fault::Shape { name, .. } if name == "action_out_proj/bias");
    assert!(faults.iter().any(shape), "{faults:#?}");
}

#[test]
fn a_missing_layer_is_named() {
    let map = Map::pi0();
    let mut burn = convert(&jax(Model::Pi0, false), "jax", "burn", &options(), 1 << 20);
    burn.remove("llm.blocks.1.experts.0.k.weight");
    let (from, to) = (map.scheme("burn").unwrap(), map.scheme("jax").unwrap());
    let faults = Plan::new(&map, &burn.tensors(), from, to, &options()).unwrap_err().faults;
    assert!(faults.iter().any(|f| matches!(f, Fault::Hole { name, .. } if name == "llm.blocks.1.experts.0.k.weight")));
}

#[test]
fn half_a_pair_is_a_hole() {
    let map = Map::pi0();
    let mut home = jax(Model::Pi0, true);
    home.remove("PaliGemma/llm/layers/attn/q_einsum/lora_b");
    let (from, to) = (map.scheme("jax").unwrap(), map.scheme("burn").unwrap());
    let faults = Plan::new(&map, &home.tensors(), from, to, &options()).unwrap_err().faults;
    let hole = |f: &Fault| matches!(f, Fault::Hole { name, .. } if name == "PaliGemma/llm/layers/attn/q_einsum/lora_b");
    assert!(faults.iter().any(hole), "{faults:#?}");
}

#[test]
fn tied_names_are_written_as_asked_and_read_either_way() {
    let home = jax(Model::Pi0, false);
    let head = "paligemma_with_expert.paligemma.lm_head.weight";
    let embed = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";
    for (tie, has) in [(Tie::Alias, [true, false]), (Tie::Own, [false, true]), (Tie::Both, [true, true])] {
        let torch = convert(&home, "jax", "openpi-torch", &Options { tie, ..options() }, 1 << 20);
        assert_eq!([head, embed].map(|n| torch.get(n).is_some()), has);
        assert_eq!(convert(&torch, "openpi-torch", "jax", &options(), 1 << 20), home);
    }
}

#[test]
fn zeros_are_written_on_request_and_ignored_when_read() {
    let home = jax(Model::Pi0, false);
    let zeros = Options { zeros: true, ..options() };
    let torch = convert(&home, "jax", "openpi-torch", &zeros, 1 << 20);
    let filler = torch.get("paligemma_with_expert.gemma_expert.lm_head.weight").expect("written");
    assert!(filler.iter().all(|b| *b == 0) && !filler.is_empty());
    assert_eq!(convert(&torch, "openpi-torch", "jax", &options(), 1 << 20), home);
    let fast = convert(&jax(Model::Fast, false), "jax", "openpi-torch", &zeros, 1 << 20);
    assert!(fast.names().all(|n| !n.contains("gemma_expert")));
}

#[test]
fn heads_that_nothing_tells_are_asked_for() {
    let map = Map::pi0();
    let burn = convert(&jax(Model::Pi0, false), "jax", "burn", &options(), 1 << 20);
    let (from, to) = (map.scheme("burn").unwrap(), map.scheme("jax").unwrap());
    let faults = Plan::new(&map, &burn.tensors(), from, to, &Options::default()).unwrap_err().faults;
    assert!(faults.iter().any(|f| matches!(f, Fault::Heads { .. })), "{faults:#?}");
    // Between schemes that merge the same axes nothing needs to be told.
    let torch = map.scheme("openpi-torch").unwrap();
    assert!(Plan::new(&map, &burn.tensors(), from, torch, &Options::default()).is_ok());
}

#[test]
fn a_cast_is_counted() {
    let home = jax(Model::Pi0, false);
    let map = Map::pi0();
    let (from, to) = (map.scheme("jax").unwrap(), map.scheme("burn").unwrap());
    let cast = Options { cast: Some(Dtype::Bf16), ..options() };
    let plan = Plan::new(&map, &home.tensors(), from, to, &cast).unwrap();
    let all: Vec<usize> = (0..home.tensors().len()).collect();
    let (memory, stop) = (Memory::new(&plan), AtomicBool::new(false));
    let mover = Mover::new(&plan, &home, &all, None, Settings::threads(2), &stop);
    mover.run(&mover.units(|_| true), &memory).unwrap();
    let changed: u64 = mover.tally.changed.iter().map(|n| n.load(std::sync::atomic::Ordering::Relaxed)).sum();
    let expected = home.all_f32().filter(|x| half::bf16::from_f32(*x).to_f32() != *x).count() as u64;
    assert_eq!(changed, expected);
    assert!(changed > 0);
}
