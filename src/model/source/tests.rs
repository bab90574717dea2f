use std::path::{Path, PathBuf};

use super::*;
use crate::error::Status;
use crate::model::architecture::{Activation, Family, Pairing, RopeScaling};
use crate::testing::{copy_of, skipped};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

#[test]
fn every_family_as_folder_and_as_gguf() {
    for name in [
        "gemma",
        "gemma2",
        "llama-dynamic",
        "llama-linear",
        "llama-yarn",
        "llama3",
        "mistral",
        "qwen2",
        "qwen3",
    ] {
        let hf = Source::open(&data().join(name), true).unwrap();
        let a = hf.architecture();
        assert_eq!(hf.kind(), "huggingface");
        let back = manifest_round_trip(a);
        assert_eq!(*a, back, "{name} through a manifest");
        let file = data().join(format!("{name}.gguf"));
        if !file.is_file() {
            continue;
        }
        let gguf = Source::open(&file, true).unwrap();
        let mut expected = a.clone();
        // By design the two formats differ in these fields.
        expected.norm_offset = 0.0;
        if matches!(a.family, Family::Llama | Family::Mistral) {
            expected.rope.pairing = Pairing::Neighbours;
        }
        if let RopeScaling::Divisors(_) = gguf.architecture().rope.scaling {
            expected.rope.scaling = gguf.architecture().rope.scaling.clone();
        }
        // GGUF has no key for it: the query weights are scaled instead.
        expected.query_scale = gguf.architecture().query_scale;
        assert!((gguf.architecture().norm_eps - expected.norm_eps).abs() < 1e-12);
        expected.norm_eps = gguf.architecture().norm_eps;
        assert_eq!(*gguf.architecture(), expected, "{name}.gguf");
        assert_eq!(
            *gguf.architecture(),
            manifest_round_trip(gguf.architecture())
        );
        assert_eq!(hf.tensors(), gguf.tensors());
    }
}

fn manifest_round_trip(a: &Architecture) -> Architecture {
    let text = serde_json::json!({
        "format_version": 2, "model": {"primary_family": a.family.name()},
        "architecture": architecture_to_json(a), "weights": {},
    });
    manifest::architecture(text.to_string().as_bytes()).unwrap()
}

/// Fields that name something other than what is computed are refused, not ignored.
#[test]
fn manifests_of_other_networks() {
    let a = configured("llama", "");
    let refused = |change: fn(&mut Value), named: &str| {
        let mut text = serde_json::json!({
            "format_version": 2, "model": {"primary_family": "llama"},
            "architecture": architecture_to_json(&a), "weights": {},
        });
        change(&mut text["architecture"]);
        let e = manifest::architecture(text.to_string().as_bytes()).unwrap_err();
        assert_eq!(e.status(), Status::Unsupported);
        assert!(e.message().contains(named), "{e}");
    };
    refused(
        |a| a["norm"] = "layernorm".into(),
        "norm is \"layernorm\"; rmsnorm is supported",
    );
    refused(
        |a| a["attention"]["variant"] = "mla".into(),
        "attention.variant is \"mla\"",
    );
}

#[test]
fn the_example_of_the_format() {
    let text = br#"{"format_version": 2, "model": {"primary_family": "llama", "families": ["llama"]},
      "architecture": {"num_layers": 2, "hidden_size": 128, "intermediate_size": 384, "vocab_size": 2048, "context_length": 512,
        "attention": {"variant": "gqa", "num_heads": 8, "kv_groups": 4, "head_dim": 16, "window_size": null},
        "activation": "swiglu", "norm": "rmsnorm", "norm_eps": 1e-6, "rope": {"base_theta": 10000.0, "scale": 1.0},
        "tie_word_embeddings": true}, "weights": {}}"#;
    let a = manifest::architecture(text).unwrap();
    assert_eq!(
        (a.layers, a.heads, a.kv_heads, a.head_dim, a.tied),
        (2, 8, 4, 16, true)
    );
    assert_eq!((a.query_scale, a.windows.clone()), (0.25, vec![None, None]));
}

/// The descriptive fields of a manifest never prevent a model from being read, whatever they
/// contain.
#[test]
fn manifests_with_strange_accuracies() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folder = copy_of(&demo);
    let text = std::fs::read_to_string(demo.join("stories.json")).unwrap();
    let path = folder.path().join("stories.json");
    let matrix = "model.layers.0.mlp.up_proj.weight";
    let long = format!("[0{}]", ",0".repeat(100_000));
    let deep = ["[".repeat(1000), "]".repeat(1000)].concat();
    for (value, kept, error) in [
        ("0.25", "0.25", Some(0.25)),
        ("\"much\"", "\"much\"", None),
        ("{\"a\": [null]}", "{\"a\":[null]}", None),
        (&long, "null", None),
        (&deep, "null", None),
    ] {
        let mut manifest: Value = serde_json::from_str(&text).unwrap();
        manifest["accuracy"] = "accuracy".into();
        manifest["weights"][matrix]["relative_error"] = "error".into();
        let text = manifest.to_string();
        let text = text.replace(
            r#""relative_error":"error""#,
            &format!(r#""relative_error":{value}"#),
        );
        let text = text.replace(
            r#""accuracy":"accuracy""#,
            &format!(r#""accuracy":{value}"#),
        );
        std::fs::write(&path, text).unwrap();
        let source = Source::open(folder.path(), true).unwrap();
        let WeightFile::Manifest(file) = source.weights() else {
            panic!("it is a manifest");
        };
        assert_eq!(file.accuracy().to_string(), kept);
        assert_eq!(source.relative_error(matrix).unwrap(), error, "{value:.20}");
    }
}

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
  "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
  "max_position_embeddings": 32, "rms_norm_eps": 1e-5}"#;

#[test]
fn configurations_that_are_wrong_say_what() {
    assert!(hf::architecture(CONFIG.as_bytes()).is_ok());
    for (from, to, status, message) in [
        (
            "LlamaForCausalLM",
            "GPT2LMHeadModel",
            Status::Unsupported,
            "the architecture is \"GPT2LMHeadModel\"; supported are llama, mistral, gemma, gemma2, qwen2, qwen3",
        ),
        (
            "\"hidden_size\": 8",
            "\"hidden_size\": 0",
            Status::Format,
            "hidden_size is 0, expected an integer from 1 to 16777216",
        ),
        (
            "\"hidden_size\": 8",
            "\"hidden_size\": 1e30",
            Status::Format,
            "hidden_size is 1e+30, expected an integer from 1 to 16777216",
        ),
        (
            "\"hidden_size\": 8",
            "\"x\": 8",
            Status::Format,
            "hidden_size is missing",
        ),
        (
            "\"vocab_size\": 16",
            "\"vocab_size\": \"16\"",
            Status::Format,
            "vocab_size is \"16\", expected an integer from 1 to 16777216",
        ),
        (
            "\"num_key_value_heads\": 1",
            "\"num_key_value_heads\": 3",
            Status::Format,
            "2 query heads cannot share 3 key/value heads",
        ),
        (
            "\"hidden_size\": 8",
            "\"hidden_size\": 6",
            Status::Format,
            "a head has 3 elements, an even number was expected",
        ),
        (
            "\"hidden_size\": 8",
            "\"hidden_size\": 4096",
            Status::Unsupported,
            "heads of 2048 elements, at most 1024 are supported",
        ),
        (
            "1e-5",
            "-1",
            Status::Format,
            "rms_norm_eps is -1, expected a number above 0",
        ),
        (
            "1e-5",
            "1e-5, \"hidden_act\": \"relu\"",
            Status::Unsupported,
            "activation \"relu\"; silu and gelu_pytorch_tanh are known",
        ),
        (
            "1e-5",
            "1e-5, \"rope_scaling\": {\"type\": \"su\"}",
            Status::Unsupported,
            "rotary scaling \"su\"; default, linear, dynamic, yarn and llama3 are known",
        ),
        (
            "1e-5",
            "1e-5, \"rope_scaling\": {\"type\": \"linear\"}",
            Status::Format,
            "rope_scaling.factor is missing",
        ),
        (
            "1e-5",
            "1e-5, \"rope_scaling\": 4",
            Status::Format,
            "rope_scaling is 4, expected an object",
        ),
        (
            "\"architectures\": [\"LlamaForCausalLM\"]",
            "\"model_type\": \"qwen3\", \"layer_types\": []",
            Status::Format,
            "layer_types has 0 entries, expected num_hidden_layers = 1",
        ),
        (
            "1e-5",
            "1e-5, \"tie_word_embeddings\": 1",
            Status::Format,
            "tie_word_embeddings is 1, expected true or false",
        ),
        (
            "\"num_hidden_layers\": 1",
            "\"num_hidden_layers\": 5000",
            Status::Format,
            "5000 layers, at most 4096 were expected",
        ),
    ] {
        let text = CONFIG.replace(from, to);
        let e = hf::architecture(text.as_bytes()).unwrap_err();
        assert_eq!((e.status(), e.message()), (status, message));
    }
    let e = hf::architecture(b"[]").unwrap_err();
    assert!(e.message().starts_with("it is not a JSON object"), "{e}");
}

#[test]
fn yarn_stretches_the_context_and_has_its_factor() {
    let of = |scaling: &str| {
        let to = format!("1e-5, \"rope_scaling\": {{\"type\": \"yarn\", \"factor\": 4{scaling}}}");
        let a = hf::architecture(CONFIG.replace("1e-5", &to).as_bytes()).unwrap();
        match a.rope.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => (a.context, attention_factor),
            _ => panic!("{:?}", a.rope.scaling),
        }
    };
    let plain = hf::architecture(CONFIG.as_bytes()).unwrap().context;
    assert_eq!(of(""), (4 * plain, None));
    let quarter = format!(", \"original_max_position_embeddings\": {}", plain / 4);
    assert_eq!(of(&quarter).0, plain);
    assert_eq!(of(r#", "mscale": 1.0, "mscale_all_dim": 1.0"#).1, Some(1.0));
    let expected = (0.1 * 0.707 * 4f64.ln() + 1.0) / (0.1 * 4f64.ln() + 1.0);
    let found = of(r#", "mscale": 0.707, "mscale_all_dim": 1.0"#).1.unwrap();
    assert!((found - expected).abs() < 1e-12, "{found}");
    assert_eq!(
        of(r#", "mscale": 1.0, "attention_factor": 1.5"#).1,
        Some(1.5)
    );
}

/// The architecture of [`CONFIG`] for a family, with additional fields.
fn configured(family: &str, fields: &str) -> Architecture {
    let config = CONFIG
        .replace(
            "\"architectures\": [\"LlamaForCausalLM\"]",
            &format!("\"model_type\": \"{family}\""),
        )
        .replace("1e-5", &format!("1e-5{fields}"));
    hf::architecture(config.as_bytes()).unwrap()
}

/// How `transformers` 5.24 treats fields that are absent, null, given twice, or unknown to the
/// class.
#[test]
fn fields_as_the_classes_read_them() {
    // If both are present, `model_type` chooses the class.
    let both = CONFIG.replace(
        "1e-5",
        "1e-5, \"model_type\": \"mistral\", \"sliding_window\": 8",
    );
    let a = hf::architecture(both.as_bytes()).unwrap();
    assert_eq!((a.family, a.windows[0]), (Family::Mistral, Some(8)));
    // Windows: absent means the default of the class, null means none, and some classes have none.
    let window = |family: &str, fields: &str| configured(family, fields).windows[0];
    let sliding = ", \"use_sliding_window\": true, \"max_window_layers\": 0";
    let null = ", \"sliding_window\": null";
    for family in ["mistral", "gemma2"] {
        assert_eq!(window(family, ""), Some(4096), "{family}");
        assert_eq!(window(family, null), None, "{family}");
    }
    for family in ["qwen2", "qwen3"] {
        assert_eq!(window(family, ""), None, "{family}");
        assert_eq!(window(family, sliding), Some(4096), "{family}");
        assert_eq!(
            window(family, &format!("{sliding}{null}")),
            None,
            "{family}"
        );
    }
    let types = ", \"sliding_window\": 8, \"layer_types\": [\"sliding_attention\"]";
    for family in ["llama", "gemma"] {
        assert_eq!(window(family, types), None, "{family}");
    }
    assert_eq!(window("qwen3", types), Some(8));
    let full = ", \"sliding_window\": 8, \"layer_types\": [\"full_attention\"]";
    assert_eq!(
        (window("mistral", full), window("gemma2", full)),
        (Some(8), None)
    );
    // Key/value heads.
    let heads = CONFIG.replace(", \"num_key_value_heads\": 1", "");
    assert_eq!(hf::architecture(heads.as_bytes()).unwrap().kv_heads, 2);
    let mistral = heads.replace("Llama", "Mistral");
    let e = hf::architecture(mistral.as_bytes()).unwrap_err();
    assert!(e.message().contains("8 key/value heads"), "{e}");
    let null = mistral.replace("1e-5", "1e-5, \"num_key_value_heads\": null");
    assert_eq!(hf::architecture(null.as_bytes()).unwrap().kv_heads, 2);
    // Activations.
    let gelu = |family: &str, fields: &str| configured(family, fields).activation;
    for (family, fields, activation) in [
        ("gemma", "", Activation::GeluTanh),
        ("gemma", ", \"hidden_act\": \"gelu\"", Activation::GeluTanh),
        ("gemma", ", \"hidden_act\": \"silu\"", Activation::Silu),
        (
            "gemma",
            ", \"hidden_activation\": \"silu\"",
            Activation::GeluTanh,
        ),
        ("gemma2", ", \"hidden_act\": \"silu\"", Activation::GeluTanh),
        (
            "gemma2",
            ", \"hidden_activation\": \"silu\"",
            Activation::Silu,
        ),
        (
            "llama",
            ", \"hidden_activation\": \"gelu_pytorch_tanh\"",
            Activation::Silu,
        ),
    ] {
        assert_eq!(gelu(family, fields), activation, "{family}{fields}");
    }
    // Biases that a class does not have.
    let biases = ", \"attention_bias\": true, \"mlp_bias\": true";
    let of = |family: &str| {
        let a = configured(family, biases);
        (a.qkv_bias, a.output_bias, a.mlp_bias)
    };
    assert_eq!(of("llama"), (true, true, true));
    assert_eq!(of("mistral"), (false, false, false));
    assert_eq!(of("qwen2"), (true, false, false));
    assert_eq!(of("qwen3"), (true, true, false));
}

#[test]
fn rotary_parameters_as_transformers_5_reads_them() {
    let rope = |fields: &str| configured("llama", fields).rope;
    // With both objects, the older one takes precedence, including its base.
    let both = rope(
        r#", "rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
           "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}"#,
    );
    assert_eq!(both.theta, 9.0);
    assert_eq!(both.scaling, RopeScaling::Linear { factor: 2.0 });
    let older = rope(r#", "rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}"#);
    assert_eq!(older.theta, 7.0);
    let newer = rope(r#", "rope_theta": 7.0, "rope_parameters": {"rope_theta": 5.0}"#);
    assert_eq!((newer.theta, newer.scaling), (5.0, RopeScaling::None));
    // The original context: the field beside the object precedes the one inside it, and the whole
    // context is the default; dynamic scaling ignores it.
    let original = |kind: &str, inside: &str, beside: &str| {
        let object = format!(
            r#"{{"rope_type": "{kind}", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0{inside}}}"#
        );
        match rope(&format!(r#", "rope_scaling": {object}{beside}"#)).scaling {
            RopeScaling::Yarn {
                original_context, ..
            }
            | RopeScaling::Dynamic {
                original_context, ..
            }
            | RopeScaling::Llama3 {
                original_context, ..
            } => original_context,
            other => panic!("{other:?}"),
        }
    };
    let (inside, beside) = (
        r#", "original_max_position_embeddings": 8"#,
        r#", "original_max_position_embeddings": 16"#,
    );
    for kind in ["yarn", "llama3"] {
        assert_eq!(original(kind, "", ""), 32);
        assert_eq!(original(kind, inside, ""), 8);
        assert_eq!(original(kind, inside, beside), 16);
    }
    assert_eq!(original("dynamic", inside, beside), 32);
    // YaRN: null means the ratio of the contexts, 0 counts as absent, and the ramp may end between
    // pairs.
    let yarn = |fields: &str| {
        let object = format!(r#"{{"type": "yarn"{fields}{inside}}}"#);
        match rope(&format!(r#", "rope_scaling": {object}"#)).scaling {
            RopeScaling::Yarn {
                factor,
                beta_slow,
                attention_factor,
                truncate,
                ..
            } => (factor, beta_slow, attention_factor, truncate),
            other => panic!("{other:?}"),
        }
    };
    let expected = (4.0, 1.0, None, true);
    assert_eq!(yarn(r#", "factor": null"#), expected);
    assert_eq!(
        yarn(r#", "factor": 4.0, "beta_slow": 0, "mscale": 0.0, "mscale_all_dim": 1.0"#),
        expected
    );
    assert!(!yarn(r#", "factor": 4.0, "truncate": false"#).3);
    // Scaling per kind of layer is refused, not silently replaced by the default.
    let nested = CONFIG.replace(
        "1e-5",
        r#"1e-5, "rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}"#,
    );
    let e = hf::architecture(nested.as_bytes()).unwrap_err();
    assert_eq!(e.status(), Status::Unsupported);
    assert!(
        e.message().contains("rope_parameters.full_attention"),
        "{e}"
    );
}

#[test]
fn one_file_goes_before_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let from = data().join("llama-linear");
    sharded(folder.path(), &from, "none.safetensors");
    let file = folder.path().join("model.safetensors");
    std::fs::copy(from.join("model.safetensors"), &file).unwrap();
    assert_eq!(Source::open(folder.path(), true).unwrap().path(), file);
}

/// An output that differs from the embedding is used, whatever the configuration says; a copy of
/// the embedding is not.
#[test]
fn an_output_beside_a_tied_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let from = data().join("llama-linear");
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    assert!(config.contains("\"tie_word_embeddings\": false"));
    let tied = config.replace(
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    std::fs::write(folder.path().join("config.json"), tied).unwrap();
    let mut file = std::fs::read(from.join("model.safetensors")).unwrap();
    let opened = |file: &[u8]| {
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        Source::open(folder.path(), true)
            .unwrap()
            .architecture()
            .tied
    };
    assert!(!opened(&file));
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
    let range = |name: &str| {
        let at = |i: usize| data + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        at(0)..at(1)
    };
    let embedding = file[range(EMBEDDING)].to_vec();
    file[range(OUTPUT)].copy_from_slice(&embedding);
    assert!(opened(&file));
}

#[test]
fn soft_caps_that_are_null_are_none() {
    let gemma2 = CONFIG.replace("LlamaForCausalLM", "Gemma2ForCausalLM");
    let caps = |text: &str| {
        let a = hf::architecture(text.as_bytes()).unwrap();
        (a.attention_softcap, a.final_softcap)
    };
    assert_eq!(caps(&gemma2), (Some(50.0), Some(30.0)));
    let null = gemma2.replace("1e-5", "1e-5, \"attn_logit_softcapping\": null");
    assert_eq!(caps(&null), (None, Some(30.0)));
}

#[test]
fn tensors_are_checked_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let from = data().join("llama-linear");
    std::fs::copy(
        from.join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let open_with = |text: &str| {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        Source::open(folder.path(), true).map(drop)
    };
    open_with(&config).unwrap();
    let layers = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let e = open_with(&layers).unwrap_err();
    assert_eq!(e.status(), Status::Format);
    assert!(
        e.message()
            .ends_with("there is no tensor model.layers.2.input_layernorm.weight, which llama has"),
        "{e}"
    );
    let e = open_with(&config.replace("\"vocab_size\": 64", "\"vocab_size\": 65")).unwrap_err();
    assert!(
        e.message()
            .ends_with("model.embed_tokens.weight is of shape [64, 24], [65, 24] was expected"),
        "{e}"
    );
}

/// Writes the weights of `from` with an index that places them all in `file`.
fn sharded(folder: &Path, from: &Path, file: &str) {
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let weights = formats::open(&from.join("model.safetensors"), true).unwrap();
    let map: Map<String, Value> = weights
        .names()
        .map(|name| (name.to_owned(), Value::from(file)))
        .collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[cfg(unix)]
#[test]
fn shards_may_be_links_and_their_names_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let from = data().join("llama-linear");
    let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshot"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir(&snapshot).unwrap();
    std::fs::copy(from.join("model.safetensors"), blobs.join("0a1b")).unwrap();
    std::os::unix::fs::symlink("../blobs/0a1b", snapshot.join("shard.safetensors")).unwrap();
    sharded(&snapshot, &from, "shard.safetensors");
    Source::open(&snapshot, true).unwrap();
    let absolute = blobs.join("0a1b");
    for name in ["../blobs/0a1b", absolute.to_str().unwrap(), ".", ""] {
        sharded(&snapshot, &from, name);
        let e = Source::open(&snapshot, true).err().unwrap();
        assert_eq!(e.status(), Status::Format);
        assert!(e.message().contains("leads out of the folder"), "{e}");
    }
}

/// The look-up of the matrix that others tie to the embedding must not hide that a shard cannot be
/// opened.
#[test]
fn a_shard_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path(), &data().join("gemma"), "none.safetensors");
    let e = Source::open(folder.path(), true).err().unwrap();
    assert_eq!(e.status(), Status::Io, "{e}");
    assert!(
        e.message().contains("none.safetensors cannot be opened"),
        "{e}"
    );
}

/// A GGUF file with an additional number in its metadata; the data stays aligned.
fn with_number(mut file: Vec<u8>, key: &str, value: u32) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let number = [&text(key)[..], &4u32.to_le_bytes(), &value.to_le_bytes()].concat();
    let filler = [&text("filler")[..], &8u32.to_le_bytes()].concat();
    let bytes = number.len() + filler.len() + 8;
    let rest = "x".repeat(bytes.next_multiple_of(32) - bytes);
    file[16] += 2;
    file.splice(24..24, [number, filler, text(&rest)].concat());
    file
}

/// The file with every occurrence of a text replaced by another of the same length.
fn renamed(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut file = file.to_vec();
    let places: Vec<usize> = (0..file.len() - from.len())
        .filter(|&i| file[i..].starts_with(from.as_bytes()))
        .collect();
    assert!(!places.is_empty(), "{from}");
    for place in places {
        file[place..][..to.len()].copy_from_slice(to.as_bytes());
    }
    file
}

/// Such a file was converted to a model that could not be opened.
#[test]
fn a_gguf_file_with_an_empty_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut file = std::fs::read(data().join("llama-linear.gguf")).unwrap();
    let name = b"token_embd.weight";
    let at = file.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    // Two dimensions: columns and rows.
    assert_eq!(file[at..at + 4], 2u32.to_le_bytes());
    file[at + 12..at + 20].fill(0);
    std::fs::write(&path, file).unwrap();
    let e = Source::open(&path, true).map(drop).unwrap_err();
    assert_eq!(e.status(), Status::Format);
    assert!(e.message().contains("a vocabulary of 0"), "{e}");
}

/// A GGUF file with a tensor that the computation does not include is refused: llama.cpp refuses or
/// uses these tensors.
#[test]
fn gguf_files_with_tensors_that_nothing_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refused = |file: &[u8], named: &str| {
        std::fs::write(&path, file).unwrap();
        let e = Source::open(&path, true).map(drop).unwrap_err();
        assert!(e.message().contains(named), "{e}");
        e.status()
    };
    let file = |name: &str| std::fs::read(data().join(name)).unwrap();
    let llama3 = file("llama3.gguf");
    let unknown = renamed(&llama3, "rope_freqs.weight", "rope_fraqs.weight");
    assert_eq!(
        refused(&unknown, "the tensor rope_fraqs.weight"),
        Status::Unsupported
    );
    // A layer lacks the bias that another one has.
    let qwen2 = file("qwen2.gguf");
    let lacks = renamed(&qwen2, "blk.0.attn_q.bias", "blk.7.attn_q.bias");
    assert_eq!(
        refused(&lacks, "there is no tensor blk.0.attn_q.bias"),
        Status::Format
    );
    let pattern = with_number(
        file("gemma2.gguf"),
        "gemma2.attention.sliding_window_pattern",
        3,
    );
    assert_eq!(
        refused(&pattern, "only 2 is supported"),
        Status::Unsupported
    );
    let window = with_number(llama3, "llama.attention.sliding_window", 0);
    std::fs::write(&path, window).unwrap();
    let opened = Source::open(&path, true).unwrap();
    assert!(opened.architecture().windows.iter().all(Option::is_none));
}

#[test]
fn gguf_files_that_only_look_like_a_known_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let opened = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let opened = Source::open(&path, true).map(drop);
        opened.map_err(|e| (e.status(), e.message().to_owned()))
    };
    let file = |name: &str| std::fs::read(data().join(name)).unwrap();
    let llama = file("llama-linear.gguf");
    for key in ["split.count", "llama.expert_count"] {
        opened(&with_number(llama.clone(), key, 0)).unwrap();
        let (status, message) = opened(&with_number(llama.clone(), key, 8)).unwrap_err();
        assert_eq!(status, Status::Unsupported);
        assert!(
            message.contains("split model") || message.contains("a mixture of experts"),
            "{message}"
        );
    }
    // A norm under another name counts as missing.
    let mut bytes = file("qwen3.gguf");
    opened(&bytes).unwrap();
    let norm = "blk.0.attn_q_norm.weight";
    let mut windows = bytes.windows(norm.len());
    let at = windows.position(|w| w == norm.as_bytes()).unwrap();
    bytes[at] = b'x';
    let (status, message) = opened(&bytes).unwrap_err();
    assert_eq!(status, Status::Format);
    assert!(
        message.contains(&format!("there is no tensor {norm}")),
        "{message}"
    );
}

#[test]
fn what_is_not_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| {
        Source::open(path, true)
            .map(drop)
            .unwrap_err()
            .message()
            .to_owned()
    };
    assert!(
        message(folder.path())
            .ends_with("has neither a config.json nor a manifest nor a .gguf file")
    );
    assert!(message(&folder.path().join("none")).contains("cannot be opened"));
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    assert!(message(folder.path()).ends_with("has a config.json and no .safetensors"));
    std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(
        message(folder.path())
            .ends_with("weights in .bin files have to be saved as safetensors first")
    );
    let lone = data().join("qwen2/model.safetensors");
    assert!(message(&lone).ends_with("give the folder that holds config.json as well"));
}

/// Published models, if they are available.
#[test]
fn real_models() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    if !shared.is_dir() {
        skipped(format_args!("{} is not here", shared.display()));
        return;
    }
    let a = Source::open(&shared.join("stories260K/stories260K.gguf"), true).unwrap();
    let a = a.architecture();
    assert_eq!(
        (a.family, a.hidden, a.intermediate, a.layers),
        (Family::Llama, 64, 172, 5)
    );
    assert_eq!(
        (a.heads, a.kv_heads, a.vocabulary, a.rope.pairing),
        (8, 4, 512, Pairing::Neighbours)
    );
    let b = Source::open(&shared.join("tinystories-656k"), true).unwrap();
    let b = b.architecture();
    assert_eq!(
        (b.hidden, b.intermediate, b.layers, b.tied, b.context),
        (128, 384, 2, true, 512)
    );
}

/// The files beside a manifest that is replaced while they are read are read again.
#[test]
fn a_model_that_is_replaced_while_it_is_opened() {
    let folder = copy_of(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"));
    let manifest = folder.path().join("stories.json");
    let read = std::cell::Cell::new(0);
    let (source, times) = Source::open_with(&manifest, true, |source| {
        read.set(read.get() + 1);
        if read.get() < 3 {
            let text = fs::read_to_string(&manifest).unwrap();
            let more = format!("{{\"version {}\": null,", read.get());
            fs::write(&manifest, text.replacen('{', &more, 1)).unwrap();
            // As readers fail that miss what was replaced.
            return Err(Error::io("gone"));
        }
        // The conversion compares what it has written with its source.
        let WeightFile::Manifest(opened) = source.weights() else {
            panic!("not a manifest");
        };
        let more = Map::from_iter([("perplexity".to_owned(), 2.5.into())]);
        let amended = formats::amend(&manifest, opened.sha256().unwrap(), "accuracy", more);
        assert!(amended.unwrap());
        assert_ne!(fs::read(&manifest).unwrap(), opened.text());
        assert!(!source.is_replaced());
        Ok(read.get())
    })
    .unwrap();
    assert_eq!((times, read.get()), (3, 3));
    fs::remove_file(&manifest).unwrap();
    assert!(!source.is_replaced());
}
