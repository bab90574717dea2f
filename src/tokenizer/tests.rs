use std::path::Path;

use super::*;
use crate::formats::{self, WeightFile};
use crate::testing::skipped;

fn shared() -> Option<std::path::PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if !shared.is_dir() {
        skipped(format_args!("{} is not here", shared.display()));
        return None;
    }
    Some(shared)
}

fn stories260k(shared: &Path) -> (Tokenizer, Vec<String>, Vec<f64>) {
    let path = shared.join("models/stories260K/stories260K.gguf");
    let WeightFile::Gguf(file) = formats::open(&path, true).unwrap() else {
        panic!("not a GGUF file");
    };
    let list = |key: &str| match file.metadata(key) {
        Some(crate::formats::gguf::Value::Array(a)) => a.clone(),
        other => panic!("{other:?}"),
    };
    let tokens = list("tokenizer.ggml.tokens");
    let texts = file.texts(&tokens).unwrap();
    let texts = texts.into_iter().map(str::to_owned).collect();
    let scores = file.numbers(&list("tokenizer.ggml.scores")).unwrap();
    (Tokenizer::from_gguf(&file).unwrap(), texts, scores)
}

/// The algorithm of llama2.c: start from characters, and repeatedly merge the adjacent pair whose
/// concatenation has the highest score.
fn greedy(texts: &[String], scores: &[f64], text: &str) -> Vec<u32> {
    let id_of = |s: &str| texts.iter().position(|t| t == s);
    if text.is_empty() {
        return Vec::new();
    }
    let mut ids: Vec<usize> = Vec::new();
    for c in format!(" {text}").replace(' ', "▁").chars() {
        match id_of(&c.to_string()) {
            Some(id) => ids.push(id),
            None => {
                let mut buffer = [0; 4];
                let bytes = c.encode_utf8(&mut buffer).bytes();
                ids.extend(bytes.map(|b| id_of(&format!("<0x{b:02X}>")).unwrap()));
            }
        }
    }
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for i in 0..ids.len().saturating_sub(1) {
            if let Some(id) = id_of(&(texts[ids[i]].clone() + &texts[ids[i + 1]]))
                && best.is_none_or(|(score, ..)| scores[id] > score)
            {
                best = Some((scores[id], id, i));
            }
        }
        let Some((_, id, at)) = best else { break };
        ids[at] = id;
        ids.remove(at + 1);
    }
    ids.into_iter().map(|id| id as u32).collect()
}

const ODD: [&str; 9] = [
    "",
    " ",
    "  two spaces",
    "tab\tand\r\nlines\n\n",
    "naïve café — “quoted”",
    "emoji 🙂🏳️‍🌈 and ⎕NA ⍳10",
    "a\u{0301} combining",
    "ends with space ",
    "日本語のテキスト",
];

#[test]
fn sentence_piece_as_llama2_c_does_it() {
    let Some(shared) = shared() else { return };
    let (tokenizer, texts, scores) = stories260k(&shared);
    let corpus = std::fs::read_to_string(shared.join("corpus/tinystories.txt")).unwrap();
    let lines = corpus.lines().take(120).chain(ODD);
    for text in lines {
        let ids = tokenizer.encode(text, None).unwrap();
        assert_eq!(ids, greedy(&texts, &scores, text), "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    assert_eq!(
        tokenizer.encode("", tokenizer.begins()).unwrap(),
        [tokenizer.bos().unwrap()]
    );
    let bos = tokenizer.encode("<s>x", tokenizer.begins()).unwrap();
    assert_eq!(
        bos.iter()
            .filter(|&&id| Some(id) == tokenizer.bos())
            .count(),
        1
    );
}

#[test]
fn a_byte_pair_tokenizer_of_hugging_face() {
    let Some(shared) = shared() else { return };
    let tokenizer = Tokenizer::from_folder(&shared.join("models/tinystories-656k")).unwrap();
    assert_eq!(
        (tokenizer.vocabulary(), tokenizer.bos(), tokenizer.is_end(2)),
        (2048, Some(1), true)
    );
    let corpus = std::fs::read_to_string(shared.join("corpus/tinystories.txt")).unwrap();
    for text in corpus.lines().take(300).chain(ODD) {
        let ids = tokenizer.encode(text, None).unwrap();
        // The engine's own decoder is the oracle for the table of bytes. It shows unknown tokens,
        // though, and this vocabulary lacks some bytes.
        let expected = tokenizer.engine.decode(&ids, true).unwrap();
        if !expected.contains("<unk>") {
            assert_eq!(tokenizer.decode(&ids).unwrap(), expected);
            assert_eq!(expected, text);
        }
    }
}

#[test]
fn pieces_are_whole_characters_and_together_the_text() {
    let Some(shared) = shared() else { return };
    let (tokenizer, ..) = stories260k(&shared);
    let mut random = crate::testing::Random::new(7);
    for round in 0..300 {
        let ids: Vec<u32> = (0..round % 40)
            .map(|_| (random.next() % 512) as u32)
            .collect();
        let whole = tokenizer.decode(&ids).unwrap();
        for room in [1, 3, 4, 7, usize::MAX] {
            let mut pieces = tokenizer.pieces(true);
            let mut text = String::new();
            for (place, &id) in ids.iter().enumerate() {
                pieces.push(&tokenizer, id, place);
                let piece = pieces.take(room);
                assert!(piece.len() <= room);
                text.push_str(piece);
            }
            pieces.finish();
            while !pieces.is_empty() {
                text.push_str(pieces.take(room.max(4)));
            }
            assert_eq!(text, whole, "room {room}");
        }
    }
}

/// After going back, what is returned continues the text of the tokens kept: from where the returned
/// text ended, or from the end of their whole characters if that comes first.
#[test]
fn pieces_go_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let mut random = crate::testing::Random::new(8);
    let mut below = |n: usize| (random.next() % n as u64) as usize;
    let bytes: Vec<u32> = "é€😀x y"
        .bytes()
        .map(|b| {
            let is_it = |id: &u32| tokenizer.bytes(*id) == [b];
            (0..tokenizer.vocabulary() as u32).find(is_it).unwrap()
        })
        .collect();
    for _ in 0..3000 {
        let room = [0, 1, 3, 4, usize::MAX][below(5)];
        let mut pieces = tokenizer.pieces(true);
        let mut ids = Vec::new();
        // The number of bytes returned, and the text since the last time it went back.
        let (mut returned, mut text) = (0, String::new());
        let mut from = 0;
        for _ in 0..below(4) {
            for _ in 0..below(12) {
                let at = below(bytes.len());
                for &id in &bytes[at..bytes.len().min(at + below(4))] {
                    pieces.push(&tokenizer, id, ids.len());
                    ids.push(id);
                    let piece = pieces.take(room);
                    returned += piece.len();
                    text.push_str(piece);
                }
            }
            let place = below(ids.len() + 1);
            ids.truncate(place);
            pieces.rewind(&tokenizer, ids.is_empty(), place);
            let mut all_at_once = tokenizer.pieces(true);
            let mut whole = 0;
            for (i, &id) in ids.iter().enumerate() {
                all_at_once.push(&tokenizer, id, i);
                whole += all_at_once.take(usize::MAX).len();
            }
            returned = returned.min(whole);
            (from, text) = (returned, String::new());
        }
        pieces.finish();
        text.push_str(pieces.take(usize::MAX));
        assert_eq!(text, tokenizer.decode(&ids).unwrap()[from..], "{ids:?}");
    }
}

#[test]
fn a_tokenizer_survives_saving() {
    let Some(shared) = shared() else { return };
    let (tokenizer, ..) = stories260k(&shared);
    let folder = tempfile::tempdir().unwrap();
    let texts = tokenizer.texts(Map::new()).unwrap();
    for (file, text) in Tokenizer::FILES.iter().zip(texts) {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let again = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(
        (again.bos(), again.vocabulary(), again.is_end(2)),
        (tokenizer.bos(), 512, tokenizer.is_end(2))
    );
    for text in ODD {
        assert_eq!(
            again.encode(text, again.begins()),
            tokenizer.encode(text, tokenizer.begins())
        );
    }
}

/// The engine's own decoder is the oracle.
#[test]
fn added_tokens_are_decoded_like_the_others() {
    let bare = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "▁": 1, "é": 2}, "merges": []}}"#;
    let spaces = r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"#;
    let pieces = format!(
        r#"{{"type": "Sequence", "decoders": [{spaces}, {{"type": "ByteFallback"}}, {{"type": "Fuse"}}]}}"#
    );
    let underscores = r#"{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#;
    let level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
    for (decoder, normalizer) in [(&*pieces, underscores), (level, "null")] {
        let mut json: Value = serde_json::from_str(bare).unwrap();
        json["decoder"] = serde_json::from_str(decoder).unwrap();
        json["normalizer"] = serde_json::from_str(normalizer).unwrap();
        let texts = [
            "▁▁",
            "▁was",
            "  ",
            "Ġhello",
            "x y",
            "ü and Ġ",
            "<0x41>",
            "▁ é",
            "日本",
        ];
        for (i, text) in texts.iter().enumerate() {
            for normalized in [false, true] {
                let id = 3 + 2 * i + usize::from(normalized);
                let text = if normalized {
                    format!("{text}.")
                } else {
                    text.to_string()
                };
                json["added_tokens"].as_array_mut().unwrap().push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": normalized, "special": false,
                }));
            }
        }
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        for id in 0..tokenizer.vocabulary() as u32 {
            let expected = tokenizer.engine.decode(&[0, id], true).unwrap();
            let found = tokenizer.decode(&[0, id]).unwrap();
            assert_eq!(
                found,
                expected,
                "{id} {:?}",
                tokenizer.engine.id_to_token(id)
            );
        }
    }
}

/// The number of tokens that precede "a", for a folder whose tokens are `a`, `<s>` and `</s>`, with
/// these files.
fn begins_with(post_processor: &str, tokens: &str, config: &str) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let special = |id: u32, text: &str| {
        format!(
            r#"{{"id": {id}, "content": "{text}", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}"#
        )
    };
    let level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
    let tokenizer = format!(
        r#"{{"version": "1.0", "added_tokens": [{}, {}], "decoder": {level}, "post_processor": {post_processor},
        "model": {{"type": "BPE", "vocab": {{"a": 0}}, "merges": []}}}}"#,
        special(1, "<s>"),
        special(2, "</s>")
    );
    for (file, text) in [
        ("tokenizer.json", tokenizer.as_str()),
        ("tokenizer_config.json", tokens),
        ("config.json", config),
    ] {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    // Special tokens in a text, and the same text as plain: here it has none without them.
    assert_eq!(tokenizer.encode("a</s>a", None).unwrap(), [0, 2, 0]);
    assert_eq!(tokenizer.encode_plain("a</s>a", None).unwrap(), [0, 0]);
    let ids = tokenizer.encode("a", tokenizer.begins()).unwrap();
    assert!(ids.len() == 1 || tokenizer.bos() == Some(1));
    // The files it writes give the same.
    let texts = tokenizer.texts(Map::new()).unwrap();
    for (file, text) in Tokenizer::FILES.iter().zip(texts) {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let again = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(
        again.encode("a", again.begins()).unwrap(),
        ids,
        "{post_processor} {tokens}"
    );
    ids.len() - 1
}

/// As in transformers 5.24, where the files do not contradict each other.
#[test]
fn who_begins_with_a_token_for_that() {
    let level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
    let template = r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}"#;
    let both = format!(r#"{{"type": "Sequence", "processors": [{level}, {template}]}}"#);
    let config = r#"{"bos_token_id": 1, "eos_token_id": 2}"#;
    let qwen = r#"{"add_bos_token": false, "bos_token": null}"#;
    assert_eq!(begins_with(level, qwen, config), 0);
    for tokens in ["{}", r#"{"bos_token": "<s>"}"#] {
        assert_eq!(begins_with(level, tokens, config), 0, "{tokens}");
        assert_eq!(begins_with(template, tokens, config), 1, "{tokens}");
        assert_eq!(begins_with(&both, tokens, config), 1, "{tokens}");
    }
    let ends = r#"{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}}"#;
    assert_eq!(begins_with(ends, "{}", config), 0);
    let named = r#"{"bos_token": null}"#;
    assert_eq!(begins_with(ends, named, config), 0);
    assert_eq!(begins_with(template, named, config), 1);
    assert_eq!(begins_with("null", named, config), 0);
    // transformers 5 considers only the post-processor, transformers 4 and llama.cpp this flag
    // first.
    let wanted = |wanted: bool| format!(r#"{{"bos_token": "<s>", "add_bos_token": {wanted}}}"#);
    assert_eq!(begins_with(template, &wanted(false), config), 0);
    assert_eq!(begins_with(level, &wanted(true), config), 1);
    // Nothing decides; models converted from GGUF files by earlier versions are like this.
    assert_eq!(begins_with("null", r#"{"bos_token": "<s>"}"#, config), 1);
    assert_eq!(begins_with("null", "{}", config), 1);
    assert_eq!(begins_with("null", "{}", "{}"), 0);
    // A token that was never added begins nothing.
    let never = r#"{"bos_token_id": 3, "eos_token_id": [32000, 2]}"#;
    assert_eq!(begins_with("null", "{}", never), 0);
}

/// Finding the characters of these bytes took time proportional to the square of their number.
#[test]
fn a_long_token_of_bytes_that_are_no_characters() {
    let many = 200_000;
    // U+00FF is the byte 0xff in the table of GPT-2.
    let token = "\u{ff}".repeat(many);
    let text = format!(
        r#"{{"version": "1.0", "added_tokens": [], "decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true}}, "model": {{"type": "BPE", "vocab": {{"{token}": 0, "a": 1}}, "merges": []}}}}"#
    );
    let tokenizer = Tokenizer::from_json(text.as_bytes()).unwrap();
    let begun = std::time::Instant::now();
    let decoded = tokenizer.decode(&[1, 0, 1]).unwrap();
    assert_eq!(decoded, format!("a{}a", "\u{fffd}".repeat(many)));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

const CHATML: &str = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'].strip() + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn chat_templates() {
    let template = |text: &str| Template::new(text.to_owned(), "<s>".to_owned(), "</s>".to_owned());
    let messages = r#"[{"role": "user", "content": " Hi "}]"#;
    assert_eq!(
        template(CHATML).render_text(messages).unwrap(),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let mistral = "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}\
        {% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}";
    assert_eq!(
        template(mistral).render_text(messages).unwrap(),
        "<s>[INST]  Hi  [/INST]"
    );
    let marked = "{% for m in messages %}{% generation %}{{ m.content }}\n{% endgeneration %}\n.{% endfor %}";
    assert_eq!(template(marked).render_text(messages).unwrap(), " Hi \n.");
    let e = template(mistral)
        .render_text(r#"[{"role": "assistant", "content": "x"}]"#)
        .unwrap_err();
    assert!(e.message().contains("roles must alternate"), "{e}");
    for (text, wrong) in [
        ("{", "not JSON"),
        ("{}", "not a list"),
        ("[1]", "messages[0] has no text \"role\""),
    ] {
        assert!(
            template(CHATML)
                .render_text(text)
                .unwrap_err()
                .message()
                .contains(wrong)
        );
    }
    let e = template(
        "{% for x in range(100000) %}{% for y in range(100000) %}.{% endfor %}{% endfor %}",
    )
    .render_text("[]");
    assert!(e.is_err(), "a template without end is stopped");
    let e = template("{% if %}").render_text("[]").unwrap_err();
    assert!(e.message().contains("malformed"), "{e}");
}

/// Each of these ended the process, took all memory, or took more than a minute.
#[test]
fn hostile_chat_templates() {
    let render = |text: String| Template::new(text, String::new(), String::new()).render_text("[]");
    let refused = |text: String, why: &str| {
        let e = render(text).unwrap_err();
        assert!(e.message().contains(why), "{e}");
    };
    let signs = "more than 256 signs in a row";
    refused(format!("{{{{ {}1 }}}}", "-".repeat(20_000)), signs);
    refused(format!("{{{{ {}1 }}}}", "- \n".repeat(300)), signs);
    refused(format!("{{{{ x{} }}}}", "~x".repeat(9_000)), signs);
    refused("x".repeat(100_000), "of 100000 bytes");
    // The deepest that is accepted, on any thread.
    let deep = [
        format!("{{{{ {}1 }}}}", "-".repeat(256)),
        format!("{{{{ {}1 }}}}", "not ".repeat(4_000)),
        format!("{{{{ 1{} }}}}", "~1".repeat(7_000)),
        format!("{{{{ x{} }}}}", "|e".repeat(8_000)),
        format!("{{% if x %}}{}{{% endif %}}", "{%elif x%}".repeat(6_000)),
    ];
    let small = std::thread::Builder::new().stack_size(512 << 10);
    let rendered = small.spawn(move || deep.map(render)).unwrap().join();
    for text in rendered.unwrap() {
        text.unwrap();
    }
    assert_eq!(render("{{ tools is none }}".to_owned()).unwrap(), "True");
    let nested = |end: &str| {
        format!(
            "{{% set ns = namespace(x=1) %}}{{% for i in range(20000) %}}{{% set ns.x = [ns.x] %}}{{% endfor %}}{end}"
        )
    };
    assert_eq!(render(nested("{{ ns.x == [] }}")).unwrap(), "False");
    assert_eq!(render(nested("{{ ns.x|tojson|length }}")).unwrap(), "40001");
    for end in [
        "{{ ns.x|tojson(indent=4) }}",
        "{{ ns.x|pprint }}",
        "{{ debug(ns.x) }}",
    ] {
        assert!(render(nested(end)).is_err(), "{end}");
    }
    for wide in ["1000000000000000", "width=1000000000"] {
        let wide = format!("{{{{ 'a'|indent({wide}) }}}}");
        refused(wide, "expected at most 1024");
    }
    assert_eq!(
        render("{{ 'a\nb'|indent(2) }} {{ 'a\nb'|indent(width=1, first=true) }}".to_owned()),
        Ok("a\n  b  a\n b".to_owned())
    );
    let much = "{% for i in range(9999) %}{{ 'x' * 100000 }}{% endfor %}";
    let long = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    // These used to end the process: its stack, or its memory.
    let itself = "{% set x = namespace() %}{% set x.a = x %}{{ x }}";
    let huge = "{{ [1]|batch(100000000000)|list|length }}";
    // And these would not have ended.
    let many = "{% for x in [] * 1000000000000000 %}{% endfor %}";
    let member = "{{ 2 in [1] * 1000000000000000 }}";
    let letters = "{% for x in 1000000000000000 * ''|list %}{% endfor %}";
    assert_eq!(
        render("{{ 'ab' * 2 }}{{ 2 * 'ab' }}".to_owned()).unwrap(),
        "abababab"
    );
    for (text, status) in [
        (much, crate::error::Status::Unsupported),
        (long, crate::error::Status::Unsupported),
        (itself, crate::error::Status::Unsupported),
        (many, crate::error::Status::Unsupported),
        (member, crate::error::Status::Unsupported),
        (letters, crate::error::Status::Unsupported),
        (huge, crate::error::Status::Config),
    ] {
        assert_eq!(
            render(text.to_owned()).unwrap_err().status(),
            status,
            "{text}"
        );
    }
}

/// Compared with Jinja2; see tools/make_chat_references.py.
#[test]
fn templates_of_the_families() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/data/chat/references.json")).unwrap();
    for case in &cases {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let template = Template::new(text("template"), text("bos"), text("eos"));
        let rendered = template.render_text(&case["messages"].to_string());
        match case["expected"].as_str() {
            Some(expected) => assert_eq!(rendered.unwrap(), expected, "{}", case["name"]),
            None => assert_eq!(
                rendered.unwrap_err().status(),
                crate::error::Status::Config,
                "{}",
                case["name"]
            ),
        }
    }
}

#[test]
fn malformed_tokenizers() {
    let error = |text: &str| {
        let e = Tokenizer::from_json(text.as_bytes()).err().unwrap();
        format!("{:?} {}", e.status(), e.message())
    };
    for text in [
        "",
        "{}",
        "[]",
        "{\"model\": 4}",
        "\u{0}\u{1}",
        "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\"}}",
    ] {
        assert!(
            error(text).starts_with("Format it is not a tokenizer: "),
            "{text}: {}",
            error(text)
        );
    }
    let bpe = |vocab: &str, merges: &str, decoder: &str| {
        format!(
            r#"{{"version": "1.0", "added_tokens": [], "decoder": {decoder}, "model": {{"type": "BPE", "vocab": {vocab}, "merges": {merges}}}}}"#
        )
    };
    let level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
    let whole = bpe(r#"{"a": 0, "b": 1, "ab": 2}"#, r#"["a b"]"#, level);
    let tokenizer = Tokenizer::from_json(whole.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("abba", None).unwrap(), [2, 1, 0]);
    assert_eq!(tokenizer.decode(&[2, 1, 0]).unwrap(), "abba");
    let e = tokenizer.decode(&[2, 3]).unwrap_err();
    assert_eq!(e.message(), "ids[1] is 3, expected 0 to 2");
    // A merge of missing tokens, an id beyond any vocabulary, an unknown decoder.
    assert!(error(&bpe(r#"{"a": 0}"#, r#"["a z"]"#, level)).starts_with("Format"));
    let far = error(&bpe(r#"{"a": 4000000000}"#, "[]", level));
    assert_eq!(
        far,
        "Format a token has the number 4000000000, at most 16777216 were expected"
    );
    assert!(
        error(&bpe(r#"{"a": 0}"#, "[]", "null"))
            .starts_with("Unsupported a tokenizer whose decoder is \"none\"")
    );
}

/// Inputs on which the engine aborts, panics or does not terminate.
#[test]
fn hostile_tokenizers() {
    let json = |more: &str, model: &str| {
        format!(
            r#"{{"version": "1.0", "added_tokens": [], {more} "decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
            "model": {{"type": "BPE", {model} "vocab": {{"a": 0, "b": 1, "ab": 2}}, "merges": ["a b"]}}}}"#
        )
    };
    let refused = |text: String| Tokenizer::from_json(text.as_bytes()).err().unwrap();
    let charsmap = r#"{"type": "Precompiled", "precompiled_charsmap": "/////w=="}"#;
    let inside = format!(r#"{{"type": "Sequence", "normalizers": [{charsmap}]}}"#);
    for normalizer in [charsmap, &inside] {
        let e = refused(json(&format!(r#""normalizer": {normalizer},"#), ""));
        assert_eq!(
            e.message(),
            "its precompiled_charsmap has 6 bytes and begins with a table of 4294967295"
        );
    }
    // A table of four bytes, without texts.
    let whole = r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="},"#;
    let tokenizer = Tokenizer::from_json(json(whole, "").as_bytes()).unwrap();
    // A text asks for its second unit.
    let e = tokenizer.encode("ab", None);
    assert!(e.is_ok() || e.unwrap_err().status() == crate::error::Status::Format);
    let none = r#"{"type": "FixedLength", "length": 0}"#;
    let inside = format!(r#"{{"type": "Sequence", "pretokenizers": [{none}]}}"#);
    for pieces in [none, &inside] {
        let e = refused(json(&format!(r#""pre_tokenizer": {pieces},"#), ""));
        assert_eq!(
            e.message(),
            "its pre_tokenizer cuts texts in pieces of 0 characters"
        );
    }
    let e = refused(json("", r#""continuing_subword_prefix": "xxxxxxxx","#));
    assert_eq!(e.message(), "it contradicts itself");
}

#[test]
fn a_folder_without_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let e = Tokenizer::from_folder(folder.path()).err().unwrap();
    assert!(
        e.message()
            .ends_with("tokenizer.json cannot be opened: there is no such file"),
        "{e}"
    );
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    let e = Tokenizer::from_folder(folder.path()).err().unwrap();
    assert_eq!(e.status(), crate::error::Status::Format);
}

/// Random words of letters.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn words(random: &mut crate::testing::Random, count: usize) -> String {
    let letter = |random: &mut crate::testing::Random| (b'a' + (random.next() % 26) as u8) as char;
    let word = |random: &mut crate::testing::Random| -> String {
        (0..40).map(|_| letter(random)).chain([' ']).collect()
    };
    (0..count).map(|_| word(random)).collect()
}

/// Runs itself in a separate process, because allocations of other tests would be counted too.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn what_was_encoded_is_not_kept_when_a_tokenizer_goes() {
    if std::env::var_os("APL_FFI_TEST_ALONE").is_none() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("tokenizer::tests::what_was_encoded_is_not_kept_when_a_tokenizer_goes")
            .env("APL_FFI_TEST_ALONE", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stderr);
        assert!(alone.status.success(), "{said}");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/qwen2");
    let mut random = crate::testing::Random::new(3);
    let text = words(&mut random, 10_000);
    let mut heap = Vec::new();
    for _ in 0..4 {
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        tokenizer.encode(&text, None).unwrap();
        drop(tokenizer);
        // SAFETY: it takes no arguments and returns numbers.
        let used = unsafe { libc::mallinfo2() };
        heap.push(used.uordblks + used.hblkhd);
    }
    let grown = heap[3].saturating_sub(heap[0]);
    assert!(
        grown < 1_000_000,
        "three more tokenizers left {grown} bytes"
    );
}

#[test]
fn what_is_in_the_place_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("tokenizer_config.json")).unwrap();
    let file = "tests/data/models/qwen3/tokenizer.json";
    std::fs::copy(file, folder.path().join("tokenizer.json")).unwrap();
    let e = Tokenizer::from_folder(folder.path()).err().unwrap();
    assert!(
        e.message()
            .ends_with("tokenizer_config.json is a directory"),
        "{e}"
    );
}
