use super::super::Tokenizer;
use super::*;
use crate::formats::FileBytes;

/// A GGUF file without tensors.
#[derive(Clone, Default)]
struct File {
    pairs: Vec<(String, Vec<u8>)>,
}

fn counted(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

impl File {
    /// Adds a pair whose value has the type with this number, replacing any pair with the same key.
    fn with(mut self, name: &str, kind: u32, value: &[u8]) -> File {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(value);
        self.pairs.retain(|(key, _)| key != name);
        self.pairs.push((name.to_owned(), bytes));
        self
    }

    fn text(self, name: &str, text: &str) -> File {
        self.with(&key(name), 8, &counted(text))
    }

    fn flag(self, name: &str, flag: bool) -> File {
        self.with(&key(name), 7, &[u8::from(flag)])
    }

    fn id(self, name: &str, id: u32) -> File {
        self.with(&key(name), 4, &id.to_le_bytes())
    }

    /// A list whose elements have the type with this number.
    fn list(self, name: &str, kind: u32, elements: &[Vec<u8>]) -> File {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((elements.len() as u64).to_le_bytes());
        bytes.extend(elements.iter().flatten());
        self.with(&key(name), 9, &bytes)
    }

    fn texts<S: AsRef<str>>(self, name: &str, texts: &[S]) -> File {
        let texts: Vec<Vec<u8>> = texts.iter().map(|t| counted(t.as_ref())).collect();
        self.list(name, 8, &texts)
    }

    fn kinds(self, kinds: &[i32]) -> File {
        let kinds: Vec<Vec<u8>> = kinds.iter().map(|k| k.to_le_bytes().to_vec()).collect();
        self.list("token_type", 5, &kinds)
    }

    fn open(&self) -> crate::error::Result<Tokenizer> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            bytes.extend(counted(key));
            bytes.extend(value);
        }
        Tokenizer::from_gguf(&Gguf::new(FileBytes::from(bytes))?)
    }
}

/// SentencePiece over these tokens, with decreasing scores.
fn sentence_piece_of(texts: &[&str]) -> File {
    let scores: Vec<Vec<u8>> = (0..texts.len())
        .map(|i| (-(i as f32)).to_le_bytes().to_vec())
        .collect();
    let file = File::default().text("model", "llama");
    file.texts("tokens", texts).list("scores", 6, &scores)
}

/// Byte-pair encoding of bytes whose letters are themselves, with these tokens and merges.
fn byte_pair_of(more: &[&str], merges: &[&str]) -> File {
    let letters: Vec<String> = ('!'..='~')
        .chain(['Ġ', 'Ċ'])
        .map(|c| c.to_string())
        .collect();
    let more = more.iter().map(|t| t.to_string());
    let texts: Vec<String> = letters.into_iter().chain(more).collect();
    let file = File::default().text("model", "gpt2");
    file.texts("tokens", &texts).texts("merges", merges)
}

/// As in llama.cpp: llama_cpp 0.3.36 gave the same for every line.
#[test]
fn who_begins_with_a_token_for_that() {
    let begins = |file: &File| file.open().unwrap().begins().is_some();
    let file = sentence_piece_of(&["▁", "a", "▁a", "<s>"]).id("bos_token_id", 3);
    assert!(begins(&file));
    assert!(!begins(&file.clone().flag("add_bos_token", false)));
    let file = byte_pair_of(&[], &[]).id("bos_token_id", 5);
    assert!(!begins(&file), "no name");
    for (name, does) in [
        ("default", false),
        ("gpt-2", false),
        ("qwen2", false),
        ("dbrx", false),
        ("smaug-bpe", false),
        ("llama-bpe", true),
        ("llama3", true),
        ("tekken", true),
    ] {
        let file = file.clone().text("pre", name);
        assert_eq!(begins(&file), does, "{name}");
        assert!(begins(&file.clone().flag("add_bos_token", true)), "{name}");
        let file = file.flag("add_bos_token", false);
        assert!(!begins(&file), "{name}");
        assert_eq!(file.open().unwrap().special.bos, Some(5), "for templates");
    }
}

#[test]
fn what_ends_a_turn() {
    let ends = |file: File| {
        let tokenizer = file.open().unwrap();
        (0..5)
            .filter(|&id| tokenizer.is_end(id))
            .collect::<Vec<_>>()
    };
    // By its text, whatever the file says.
    let file = sentence_piece_of(&["<s>", "</s>", "<|eom_id|>", "stop", "a"]);
    assert_eq!(ends(file.id("eos_token_id", 1)), [1, 2]);
    let file = sentence_piece_of(&["<s>", "</s>", "stop", "wait", "a"])
        .id("eos_token_id", 1)
        .id("eot_token_id", 2)
        .id("eom_token_id", 3);
    assert_eq!(ends(file), [1, 2, 3]);
    // Tokens that were never added are passed over.
    let file = sentence_piece_of(&["<s>", "</s>", "a", "b", "c"])
        .id("bos_token_id", 5)
        .id("eos_token_id", 32000)
        .id("eot_token_id", 4);
    assert_eq!(file.open().unwrap().begins(), None);
    assert_eq!(ends(file), [4]);
}

/// As in llama.cpp: llama_cpp 0.3.36 gave the same ids for 182 texts and each of these names.
#[test]
fn words_are_cut_as_llama_cpp_cuts_them() {
    let merges = ["Ġ 1", "1 2", "12 3", "123 4", ". .", "x ."];
    let tokens = ["Ġ1", "12", "123", "1234", "..", "x.", "hello"];
    let file = byte_pair_of(&tokens, &merges);
    let cut = |name: Option<&str>, text: &str| {
        let file = match name {
            Some(name) => file.clone().text("pre", name),
            None => file.clone(),
        };
        let tokenizer = file.open().unwrap();
        let ids = tokenizer.encode(text, None).unwrap();
        let texts: Vec<String> = ids
            .iter()
            .map(|&id| tokenizer.decode(&[id]).unwrap())
            .collect();
        texts.join("|")
    };
    for name in [None, Some("default")] {
        assert_eq!(cut(name, "a 1234"), "a| |123|4");
        assert_eq!(cut(name, "x...y"), "x|..|.|y");
    }
    assert_eq!(cut(Some("gpt-2"), "a 1234"), "a| 1|2|3|4");
    assert_eq!(cut(Some("llama-bpe"), "a 1234"), "a| |123|4");
    assert_eq!(cut(Some("qwen2"), "a 1234"), "a| |1|2|3|4");
    for (name, whole) in [
        ("llama-bpe", true),
        ("tekken", true),
        ("dbrx", false),
        ("smaug-bpe", false),
        ("qwen2", false),
        ("gpt-2", false),
        ("default", false),
    ] {
        let expected = if whole { "hello" } else { "h|e|l|l|o" };
        assert_eq!(cut(Some(name), "hello"), expected, "{name}");
    }
    let e = file.text("pre", "bloom").open().err().unwrap();
    assert!(
        e.message()
            .starts_with("tokenizer.ggml.pre is \"bloom\"; known are llama-bpe, "),
        "{e}"
    );
}

#[test]
fn long_tokens() {
    let long = "a".repeat(1_000_000);
    let file = sentence_piece_of(&["a", "aa", &long]);
    let begun = std::time::Instant::now();
    let e = file.open().err().unwrap();
    assert_eq!(
        e.message(),
        "token 2 has 1000000 bytes, at most 512 were expected"
    );
    let found = file.kinds(&[1, 1, kind::USER_DEFINED as i32]).open();
    assert_eq!(
        found.unwrap().encode(&long, None).unwrap(),
        [2],
        "found before anything is joined"
    );
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}
