//! A conversation with a model: its position, KV cache and sampler.

use std::sync::Arc;

use super::Model;
use super::cancel::{Cancellation, Canceller};
use super::decoder::{Logits, Observer};
use super::engine::{Engine, Feed, Latest};
use super::options::{Precision, SessionOptions};
use super::rope::Rotary;
use super::sampler::Sampler;
use crate::error::{Error, Result, Status};
use crate::members::shortest;
use crate::memory;
use crate::runtime::Runtime;
use crate::tokenizer::Pieces;

/// A growing sequence of tokens. A session serves one caller at a time; a model serves several
/// sessions at once.
pub struct Session {
    model: Arc<Model>,
    context: usize,
    /// The tokens fed so far: `(position)`, with capacity for the context.
    tokens: Vec<u32>,
    /// The largest number of tokens fed so far, successfully or not: what lies more than a window
    /// before it may be overwritten. `usize::MAX`: everything may be.
    farthest: usize,
    /// For each token the sequence length for which its frequencies were computed, if they depend
    /// on it.
    lengths: Option<Vec<u32>>,
    engine: Engine,
    /// The logits of the last token `(vocabulary)`, if they are [`Latest::Here`].
    logits: Vec<f32>,
    latest: Latest,
    sampler: Sampler,
    pieces: Option<Pieces>,
    cancellation: Arc<Cancellation>,
}

/// Does not stop early, so that it is vectorised.
fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |all, v| all & v.is_finite())
}

/// The result of [`Session::next`].
#[derive(Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// The token; `None` if the context is full.
    pub id: Option<u32>,
    /// Its text, as far as it consists of whole characters and fits.
    pub piece: &'a str,
    /// Whether the text ends here.
    pub end: bool,
}

/// The `ERR_FORMAT` for results of a model that are not finite.
pub(crate) fn not_finite(what: &str) -> Error {
    Error::format(format!(
        "{what} are not finite: the weights of the model are damaged, or too large"
    ))
}

impl Session {
    /// A session at position 0.
    ///
    /// # Errors
    /// `ERR_CONFIG` for a context beyond the model's; `ERR_MEMORY`.
    pub fn new(rt: &Runtime, model: Arc<Model>, options: &SessionOptions) -> Result<Session> {
        let a = &model.architecture;
        let context = options.context.unwrap_or(model.context);
        if context > model.context {
            return Err(Error::config(format!(
                "options has \"context\": {context}, expected at most {}, that of the model",
                model.context
            )));
        }
        let default = if model.floats {
            Precision::F32
        } else {
            Precision::F16
        };
        let precision = match default {
            Precision::F32 => default,
            Precision::F16 => options.kv.unwrap_or(default),
        };
        Ok(Session {
            context,
            tokens: memory::with_capacity(context, "the tokens of a session")?,
            farthest: 0,
            lengths: match Rotary::is_dynamic(&a.rope) {
                true => Some(memory::with_capacity(context, "the lengths of a session")?),
                false => None,
            },
            engine: Engine::new(rt, &model, precision, context)?,
            logits: memory::filled(a.vocabulary, 0.0, "logits")?,
            latest: Latest::None,
            sampler: Sampler::new(&options.sampling, a.vocabulary)?,
            pieces: model.tokenizer.as_ref().map(|t| t.pieces(true)),
            cancellation: Arc::default(),
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The number of tokens fed so far.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// The largest number of tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The tokens fed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Its options, in the form of the option JSON, and its position.
    pub fn info(&self) -> serde_json::Value {
        let s = self.sampler.options();
        serde_json::json!({
            "position": self.position(),
            "context": self.context,
            "logits": self.has_logits(),
            "backend": self.engine.name(),
            "kv": self.engine.precision(),
            "kv_bytes": self.cache_bytes(),
            "temperature": shortest(s.temperature),
            "top_k": s.top_k,
            "top_p": shortest(s.top_p),
            "min_p": shortest(s.min_p),
            "repeat_penalty": shortest(s.repeat_penalty),
            "seed": s.seed,
        })
    }

    /// The size of keys and values, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.engine.cache_bytes()
    }

    fn has_logits(&self) -> bool {
        self.latest != Latest::None
    }

    /// Fetches the latest logits if they are on a device.
    fn fetch(&mut self) -> Result<()> {
        if let Latest::OnDevice(_) = self.latest {
            self.engine.fetch(&mut self.logits)?;
            self.latest = Latest::Here;
        }
        Ok(())
    }

    /// A handle that can cancel a running call.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.cancellation)
    }

    /// Feeds tokens, and writes the logits that are wanted.
    ///
    /// # Errors
    /// `ERR_RANGE` for an id beyond the vocabulary; `ERR_STATE` for tokens beyond the context, and
    /// if the call was cancelled; `ERR_FORMAT` if activations are int8 and one is not finite;
    /// `ERR_MEMORY`. Then nothing is fed.
    pub fn eval(&mut self, rt: &Runtime, ids: &[u32], logits: Logits<'_>) -> Result<()> {
        self.eval_observed(rt, ids, logits, None)
    }

    /// As [`Session::eval`], with an observer of the inputs of all products.
    ///
    /// # Errors
    /// As [`Session::eval`].
    pub fn eval_observed(
        &mut self,
        rt: &Runtime,
        ids: &[u32],
        logits: Logits<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<()> {
        let _running = self.cancellation.begin();
        let vocabulary = self.model.architecture.vocabulary;
        if let Some(i) = ids.iter().position(|&id| id as usize >= vocabulary) {
            return Err(Error::range(format!(
                "ids[{i}] is {}, expected 0 to {}",
                ids[i],
                vocabulary - 1
            )));
        }
        let position = self.position();
        if ids.len() > self.context - position {
            return Err(Error::state(format!(
                "{} tokens at position {position}, expected at most {}: the context has {}",
                ids.len(),
                self.context - position,
                self.context
            )));
        }
        if ids.is_empty() {
            return match logits {
                Logits::Last(_) if !self.has_logits() => Err(Error::state(
                    "there are no logits, expected tokens to feed first",
                )),
                Logits::Last(out) => {
                    self.fetch()?;
                    out.copy_from_slice(&self.logits);
                    Ok(())
                }
                Logits::None | Logits::All(_) => Ok(()),
            };
        }
        if ids.len() > 1 {
            // The latest logits must survive a failure. For a single token that is not worth a
            // copy.
            self.fetch()?;
        }
        self.feed(rt, ids, position + ids.len(), logits, observer)?;
        let at_start = self.at_start();
        if let (Some(pieces), Some(tokenizer)) = (&mut self.pieces, &self.model.tokenizer) {
            pieces.pass_over(tokenizer, at_start, position);
        }
        Ok(())
    }

    /// Whether no text has been fed yet: nothing, or only the token that begins a text.
    fn at_start(&self) -> bool {
        let bos = self.model.tokenizer.as_ref().and_then(|t| t.bos());
        self.tokens.iter().all(|&id| Some(id) == bos)
    }

    /// Feeds tokens after those fed so far. On failure nothing is fed: the latest logits are
    /// unchanged, unless they were left on a device, and tokens whose keys and values were
    /// overwritten are re-fed by the next call.
    ///
    /// For `length` see [`Feed::length`].
    fn feed(
        &mut self,
        rt: &Runtime,
        ids: &[u32],
        length: usize,
        logits: Logits<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<()> {
        let first = self.tokens.len();
        if self.has_forgotten(first) {
            self.feed_again(rt)?;
        }
        let before = std::mem::replace(&mut self.latest, Latest::None);
        // From here on slots are overwritten, whether this succeeds or not.
        self.farthest = match first {
            0 => ids.len(),
            _ => self.farthest.max(first + ids.len()),
        };
        let feed = Feed {
            rt,
            model: &self.model,
            cancellation: &self.cancellation,
            first,
            ids,
            length,
            greedy: self.sampler.is_greedy(),
        };
        let fed = self.engine.feed(&feed, logits, &mut self.logits, observer);
        match fed {
            Ok(latest) => self.latest = latest,
            Err(e) => {
                if before == Latest::Here {
                    self.latest = before;
                }
                return Err(match e.status() {
                    // The ids are in the vocabulary, so a value out of range arose inside the
                    // model.
                    Status::Range => not_finite("activations"),
                    _ => e,
                });
            }
        }
        self.tokens.extend_from_slice(ids);
        if let Some(lengths) = &mut self.lengths {
            lengths.resize(self.tokens.len(), length as u32);
        }
        Ok(())
    }

    /// Whether keys or values visible from this position may be overwritten, because those of a
    /// sliding window are in a ring buffer.
    fn has_forgotten(&self, position: usize) -> bool {
        let windows = self.model.architecture.windows.iter().flatten();
        let oldest = self.farthest.saturating_sub(self.engine.least_slots());
        position > 0
            && windows
                .max()
                .is_some_and(|w| (position + 1).saturating_sub(*w) < oldest)
    }

    /// Re-feeds all tokens from the first one on, with the frequencies they had.
    fn feed_again(&mut self, rt: &Runtime) -> Result<()> {
        self.farthest = usize::MAX;
        let before = match (&self.lengths, self.latest) {
            // There may be several runs, each of which overwrites the logits.
            (Some(_), Latest::Here) => Some(memory::copied(&self.logits, "the latest logits")?),
            _ => None,
        };
        let fed = self.feed_runs_again(rt);
        if let (Err(_), Some(before)) = (&fed, before) {
            self.logits.copy_from_slice(&before);
        }
        fed
    }

    fn feed_runs_again(&mut self, rt: &Runtime) -> Result<()> {
        let mut first = 0;
        while first < self.tokens.len() {
            let (n, length) = match &self.lengths {
                None => (self.tokens.len(), self.tokens.len()),
                Some(lengths) => {
                    let same = lengths[first..]
                        .iter()
                        .take_while(|l| **l == lengths[first]);
                    (same.count(), lengths[first] as usize)
                }
            };
            let feed = Feed {
                rt,
                model: &self.model,
                cancellation: &self.cancellation,
                first,
                ids: &self.tokens[first..first + n],
                length,
                greedy: false,
            };
            self.engine
                .feed(&feed, Logits::None, &mut self.logits, None)?;
            first += n;
        }
        self.latest = Latest::Here;
        self.farthest = self.tokens.len();
        Ok(())
    }

    /// Samples a token from the latest logits and feeds it. `room` is the capacity for its text, in
    /// bytes.
    ///
    /// A token that ends the text is not fed. A call that fails does not advance the random number
    /// generator. Text that does not fit, or is not yet a whole character, is put at the start of
    /// the next piece.
    ///
    /// # Errors
    /// `ERR_STATE` if there are no logits, or the call was cancelled; `ERR_FORMAT` if they are not
    /// finite; `ERR_UNSUPPORTED` if the model has no tokenizer.
    pub fn next(&mut self, rt: &Runtime, room: usize) -> Result<Step<'_>> {
        let _running = self.cancellation.begin();
        if !self.has_logits() {
            return Err(Error::state(
                "there are no logits to sample from, expected apl_session_eval first",
            ));
        }
        if self.model.tokenizer.is_none() {
            return Err(self.model.no_tokenizer());
        }
        let before = self.sampler.state();
        let id = match self.latest {
            // Left on the device because the sampler is greedy.
            Latest::OnDevice(Some(id)) => id,
            Latest::Here if all_finite(&self.logits) => {
                self.sampler.sample(&self.logits, &self.tokens)
            }
            _ => return Err(not_finite("the logits")),
        };
        let ends = self.model.tokenizer.as_ref().is_some_and(|t| t.is_end(id));
        let full = self.position() == self.context;
        if ends || full {
            return Ok(Step {
                id: Some(id).filter(|_| ends),
                piece: "",
                end: true,
            });
        }
        let length = self.position() + 1;
        // Here, as feeding a token to a device, which then has the logits, runs to its end.
        let fed = self
            .cancellation
            .check()
            .and_then(|()| self.feed(rt, &[id], length, Logits::None, None));
        if let Err(e) = fed {
            self.sampler.restore(before);
            return Err(e);
        }
        let pieces = self.pieces.as_mut().expect("there is a tokenizer");
        let tokenizer = self.model.tokenizer.as_ref().expect("as above");
        pieces.push(tokenizer, id, length - 1);
        Ok(Step {
            id: Some(id),
            piece: pieces.take(room),
            end: false,
        })
    }

    /// Keeps the first `position` tokens; the latest logits are then those of the last of them. If
    /// a sliding window has overwritten positions that they attend to, all of them are re-fed. Of
    /// the text that is held back, that of the tokens kept remains.
    ///
    /// # Errors
    /// `ERR_RANGE` beyond the tokens fed so far; `ERR_STATE` if the call was cancelled. Then
    /// nothing changes.
    pub fn rewind(&mut self, rt: &Runtime, position: usize) -> Result<()> {
        let _running = self.cancellation.begin();
        let now = self.position();
        if position > now {
            return Err(Error::range(format!(
                "position is {position}, expected 0 to {now}, the tokens that were fed"
            )));
        }
        if position == now && (self.has_logits() || now == 0) {
            return Ok(());
        }
        // The last kept token is re-fed to get its logits. The latest logits must survive a
        // failure.
        if position > 0 {
            self.fetch()?;
        }
        let before = match self.latest {
            Latest::Here if position > 0 => {
                Some(memory::copied(&self.logits, "the latest logits")?)
            }
            _ => None,
        };
        let last = position.checked_sub(1).map(|i| self.tokens[i]);
        let length = match (&self.lengths, last) {
            (Some(lengths), Some(_)) => lengths[position - 1] as usize,
            _ => position,
        };
        let kept = self.tokens.split_off(position.saturating_sub(1));
        let lengths = self.lengths.as_mut();
        let kept_lengths = lengths.map(|l| l.split_off(position.saturating_sub(1)));
        match last {
            None => self.latest = Latest::None,
            Some(last) => {
                if let Err(e) = self.feed(rt, &[last], length, Logits::None, None) {
                    self.tokens.truncate(position - 1);
                    self.tokens.extend(kept);
                    if let (Some(lengths), Some(kept)) = (&mut self.lengths, kept_lengths) {
                        lengths.truncate(position - 1);
                        lengths.extend(kept);
                    }
                    // The re-fed tokens may have overwritten what these tokens need.
                    self.farthest = usize::MAX;
                    self.latest = Latest::None;
                    if let Some(before) = before {
                        self.logits.copy_from_slice(&before);
                        self.latest = Latest::Here;
                    }
                    return Err(e);
                }
            }
        }
        let at_start = self.at_start();
        if let (Some(pieces), Some(tokenizer)) = (&mut self.pieces, &self.model.tokenizer) {
            pieces.rewind(tokenizer, at_start, position);
        }
        Ok(())
    }
}
