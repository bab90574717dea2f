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
    /// With a pair, whose value is of the type of that number; one of that key gives way.
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

    /// A list whose elements are of the type of that number.
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

/// SentencePiece over these tokens, whose scores fall.
fn sentence_piece_of(texts: &[&str]) -> File {
    let scores: Vec<Vec<u8>> = (0..texts.len())
        .map(|i| (-(i as f32)).to_le_bytes().to_vec())
        .collect();
    let file = File::default().text("model", "llama");
    file.texts("tokens", texts).list("scores", 6, &scores)
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
        found.unwrap().encode(&long, false).unwrap(),
        [2],
        "found before anything is joined"
    );
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}
