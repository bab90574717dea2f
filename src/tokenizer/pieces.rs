//! The text of a growing sequence, whole characters at a time.

use super::Tokenizer;

/// Holds back the bytes of tokens until they form whole characters.
///
/// Bytes are added token by token ([`Pieces::push`]) and returned as text ([`Pieces::take`]); the
/// concatenation of the returned texts is the text of all tokens. Bytes that can never become a
/// character are returned as U+FFFD.
///
/// A *place* is a number of tokens of the sequence, including those whose text is not wanted.
pub struct Pieces {
    /// Bytes added and not yet returned, after the `sent` ones.
    held: Vec<u8>,
    /// The number of bytes at the front of `held` that the last piece returned.
    sent: usize,
    /// The number of bytes in `held`, after the `sent` ones, that are whole characters.
    whole: usize,
    /// Whether the next token is the first one, whose leading space is not part of the text.
    strip: bool,
    /// The number of bytes returned so far.
    returned: usize,
    /// The first place with the present state.
    now: usize,
    /// The state at earlier places where something was held, in order.
    marks: Vec<Mark>,
    scratch: Vec<u8>,
}

/// What is needed to go back to a place.
struct Mark {
    place: usize,
    /// The number of bytes of whole characters up to there, returned or not.
    whole: usize,
    /// The bytes of an incomplete character after them.
    tail: [u8; 3],
    tail_len: usize,
}

impl Pieces {
    pub(super) fn new(strip: bool) -> Pieces {
        Pieces {
            held: Vec::with_capacity(256),
            sent: 0,
            whole: 0,
            strip,
            returned: 0,
            now: 0,
            marks: Vec::new(),
            scratch: Vec::with_capacity(256),
        }
    }

    /// Notes that tokens whose text is not wanted follow at `place`. Bytes held so far come before
    /// the text of what follows; an incomplete character stays incomplete. `at_start` is as for
    /// [`Tokenizer::pieces`].
    pub fn pass_over(&mut self, tokenizer: &Tokenizer, at_start: bool, place: usize) {
        self.mark(place);
        self.finish();
        self.mark(place + 1);
        self.now = place + 1;
        self.strip = at_start && tokenizer.vocabulary.strips_first_space();
    }

    /// Goes back to an earlier place: of the bytes held, those of the tokens up to there remain,
    /// including those of a character that later tokens completed. `at_start` is as for
    /// [`Tokenizer::pieces`].
    pub fn rewind(&mut self, tokenizer: &Tokenizer, at_start: bool, place: usize) {
        self.strip = at_start && tokenizer.vocabulary.strips_first_space();
        if place >= self.now {
            return;
        }
        self.now = place;
        self.held.drain(..self.sent);
        (self.sent, self.whole) = (0, 0);
        let kept = self.marks.partition_point(|mark| mark.place <= place);
        self.marks.truncate(kept);
        match self.marks.last() {
            None => self.held.clear(),
            // If it is of an earlier place, nothing was held at this one that it does not have.
            Some(mark) => {
                self.whole = mark.whole.saturating_sub(self.returned);
                self.held.truncate(self.whole);
                if mark.place == place {
                    self.held.extend_from_slice(&mark.tail[..mark.tail_len]);
                    self.returned = self.returned.min(mark.whole);
                }
            }
        }
    }

    /// Adds the token that follows at `place`.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, place: usize) {
        self.mark(place);
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
        self.returned += len;
        std::str::from_utf8(&self.held[..len]).expect("cut where a character ends")
    }

    /// Whether there is no text to return.
    pub fn is_empty(&self) -> bool {
        self.whole == 0
    }

    /// Notes the state at a place, if anything is held there; a token follows.
    fn mark(&mut self, place: usize) {
        self.now = place + 1;
        let before = self.marks.partition_point(|mark| mark.place < place);
        self.marks.truncate(before);
        let tail = &self.held[self.sent + self.whole..];
        if self.whole == 0 && tail.is_empty() {
            return;
        }
        let mut mark = Mark {
            place,
            whole: self.returned + self.whole,
            tail: [0; 3],
            tail_len: tail.len(),
        };
        mark.tail[..tail.len()].copy_from_slice(tail);
        self.marks.push(mark);
    }

    fn whole_text(&self) -> &str {
        std::str::from_utf8(&self.held[..self.whole]).expect("settled")
    }

    /// Finds the whole characters, and replaces bytes that can never become one.
    fn settle(&mut self, last: bool) {
        self.scratch.clear();
        self.scratch.extend_from_slice(&self.held[self.whole..]);
        self.held.truncate(self.whole);
        let mut rest = &self.scratch[..];
        let incomplete = loop {
            let Err(e) = std::str::from_utf8(rest) else {
                self.held.extend_from_slice(rest);
                break &[][..];
            };
            let (characters, wrong) = rest.split_at(e.valid_up_to());
            self.held.extend_from_slice(characters);
            let len = match e.error_len() {
                Some(len) => len,
                None if last => wrong.len(),
                None => break wrong,
            };
            self.held.extend_from_slice("\u{fffd}".as_bytes());
            rest = &wrong[len..];
        };
        self.whole = self.held.len();
        self.held.extend_from_slice(incomplete);
    }
}
