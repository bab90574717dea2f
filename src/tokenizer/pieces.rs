//! The text of a growing sequence, whole characters at a time.

use super::Tokenizer;

/// Holds back the bytes of tokens until they form whole characters.
///
/// Bytes are added token by token ([`Pieces::push`]) and returned as text ([`Pieces::take`]); the
/// concatenation of the returned texts is the text of all tokens. Bytes that can never become a
/// character are returned as U+FFFD.
pub struct Pieces {
    /// Bytes added and not yet returned, after the `sent` ones.
    held: Vec<u8>,
    /// The number of bytes at the front of `held` that the last piece returned.
    sent: usize,
    /// The number of bytes in `held`, after the `sent` ones, that are whole characters.
    whole: usize,
    /// Whether the next token is the first one, whose leading space is not part of the text.
    strip: bool,
    scratch: Vec<u8>,
}

impl Pieces {
    pub(super) fn new(strip: bool) -> Pieces {
        Pieces {
            held: Vec::with_capacity(256),
            sent: 0,
            whole: 0,
            strip,
            scratch: Vec::with_capacity(256),
        }
    }

    /// Notes that tokens come in between whose text is not wanted. Bytes held so far come before
    /// the text of what follows; an incomplete character stays incomplete. `at_start` is as for
    /// [`Tokenizer::pieces`].
    pub fn pass_over(&mut self, tokenizer: &Tokenizer, at_start: bool) {
        self.finish();
        self.strip = at_start && tokenizer.vocabulary.strips_first_space();
    }

    /// Discards the bytes held; `at_start` is as for [`Tokenizer::pieces`].
    pub fn restart(&mut self, tokenizer: &Tokenizer, at_start: bool) {
        self.held.clear();
        (self.sent, self.whole) = (0, 0);
        self.strip = at_start && tokenizer.vocabulary.strips_first_space();
    }

    /// Adds a token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) {
        let mut bytes = tokenizer.bytes(id);
        if self.strip && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip = false;
        }
        self.held.drain(..self.sent);
        self.sent = 0;
        self.held.extend_from_slice(bytes);
        self.settle(false);
    }

    /// Notes that no token follows, so that an incomplete character stays incomplete.
    pub fn finish(&mut self) {
        self.held.drain(..self.sent);
        self.sent = 0;
        self.settle(true);
    }

    /// The next piece: as many whole characters as are available and fit in `room` bytes.
    pub fn take(&mut self, room: usize) -> &str {
        self.held.drain(..self.sent);
        self.sent = 0;
        let text = self.whole_text();
        let len = if text.len() <= room {
            text.len()
        } else {
            text.floor_char_boundary(room)
        };
        self.sent = len;
        self.whole -= len;
        std::str::from_utf8(&self.held[..len]).expect("cut where a character ends")
    }

    /// Whether there is no text to return.
    pub fn is_empty(&self) -> bool {
        self.whole == 0
    }

    fn whole_text(&self) -> &str {
        std::str::from_utf8(&self.held[..self.whole]).expect("settled")
    }

    /// Finds the whole characters, and replaces bytes that can never become one.
    fn settle(&mut self, last: bool) {
        let mut at = self.whole;
        loop {
            let e = match std::str::from_utf8(&self.held[at..]) {
                Ok(_) => {
                    at = self.held.len();
                    break;
                }
                Err(e) => e,
            };
            at += e.valid_up_to();
            let bad = match e.error_len() {
                Some(len) => len,
                None if last => self.held.len() - at,
                None => break,
            };
            self.scratch.clear();
            self.scratch.extend_from_slice(&self.held[at + bad..]);
            self.held.truncate(at);
            self.held.extend_from_slice("\u{fffd}".as_bytes());
            at = self.held.len();
            self.held.extend_from_slice(&self.scratch);
        }
        self.whole = at;
    }
}
