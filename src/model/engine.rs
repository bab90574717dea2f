//! The engine that runs the forward pass of a session: the CPU, devices, or both.

use std::sync::Arc;

use super::Model;
use super::cache::Cache;
use super::cancel::Cancellation;
use super::decoder::{BLOCK, Logits, Lower, Observer, Pass, State};
use super::device::{self, Wanted};
use super::options::Precision;
use crate::cuda::transformer::NOT_FINITE;
use crate::error::{Error, Result};
use crate::memory;
use crate::runtime::Runtime;

/// The KV cache and the buffers of a session, by where they are.
pub(super) enum Engine {
    Host(Box<State>),
    Device(Box<device::State>),
    /// The devices have the first layers, the CPU the rest.
    Both(Box<device::State>, Box<State>),
}

/// Where the logits of the last token are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Latest {
    /// Nowhere: nothing has been fed, or feeding failed.
    None,
    /// In the session.
    Here,
    /// On the device, with their arg-max if all of them are finite.
    OnDevice(Option<u32>),
}

/// Tokens to feed.
pub(super) struct Feed<'a> {
    pub rt: &'a Runtime,
    pub model: &'a Model,
    pub cancellation: &'a Cancellation,
    /// The position of the first of them.
    pub first: usize,
    pub ids: &'a [u32],
    /// The length of the sequence for which the frequencies of a dynamic rotary embedding are
    /// computed: as in `transformers`, the length after all the tokens of a call. Tokens that are
    /// re-fed keep the length they had.
    pub length: usize,
    /// Whether the next step needs only the arg-max of the logits.
    pub greedy: bool,
}

impl Engine {
    /// For sequences of up to `context` tokens.
    ///
    /// # Errors
    /// `ERR_MEMORY`, of the host or of the device that the model is on; `ERR_BACKEND`.
    pub fn new(
        rt: &Runtime,
        model: &Arc<Model>,
        precision: Precision,
        context: usize,
    ) -> Result<Engine> {
        let there = device::State::new(model, precision, context)?;
        let there = match there.map(Box::new) {
            Some(state) if state.whole() => return Ok(Engine::Device(state)),
            there => there,
        };
        let a = &model.architecture;
        let elsewhere = there.as_ref().map_or(0, |state| state.layers());
        let cache = Cache::new(a, precision, context, BLOCK, elsewhere)?;
        let here = Box::new(State::new(a, cache, context, rt.pool().threads())?);
        Ok(match there {
            Some(there) => Engine::Both(there, here),
            None => Engine::Host(here),
        })
    }

    /// `"cuda"`, `"cpu"` or `"cuda+cpu"`.
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Host(_) => "cpu",
            Engine::Device(_) => "cuda",
            Engine::Both(..) => "cuda+cpu",
        }
    }

    /// The precision of its cache: `"f16"` or `"f32"`.
    pub fn precision(&self) -> &'static str {
        match self {
            Engine::Host(state) | Engine::Both(_, state) => state.cache.precision(),
            Engine::Device(state) => state.precision(),
        }
    }

    /// The size of keys and values, in bytes.
    pub fn cache_bytes(&self) -> usize {
        match self {
            Engine::Host(state) => state.cache.bytes(),
            Engine::Device(state) => state.cache_bytes(),
            Engine::Both(there, here) => there.cache_bytes() + here.cache.bytes(),
        }
    }

    /// The number of slots of the layer with the fewest.
    pub fn least_slots(&self) -> usize {
        match self {
            Engine::Host(state) => state.cache.least_slots(),
            Engine::Device(state) => state.least_slots(),
            Engine::Both(there, here) => there.least_slots().min(here.cache.least_slots()),
        }
    }

    /// Feeds tokens. `own` `(vocabulary)` receives the logits of the last one, unless they stay on
    /// the device. The caller's buffer is written only once nothing can fail any more.
    ///
    /// # Errors
    /// Those of [`Pass::run`] and [`device::State::feed`]; `ERR_UNSUPPORTED` for an observer of
    /// products on a device.
    pub fn feed(
        &mut self,
        feed: &Feed<'_>,
        logits: Logits<'_>,
        own: &mut [f32],
        observer: Option<&mut dyn Observer>,
    ) -> Result<Latest> {
        let vocabulary = own.len();
        match logits {
            Logits::All(out) => {
                let mut all = memory::filled(out.len(), 0.0, "the logits of every token")?;
                self.run(feed, Wanted::All(&mut all), observer)?;
                out.copy_from_slice(&all);
                own.copy_from_slice(&out[(feed.ids.len() - 1) * vocabulary..]);
            }
            Logits::Last(out) => {
                self.run(feed, Wanted::Last(own), observer)?;
                out.copy_from_slice(own);
            }
            Logits::None if feed.greedy && matches!(self, Engine::Device(_)) => {
                let token = self.run(feed, Wanted::Greatest, observer)?;
                return Ok(token.map_or(Latest::None, |token| {
                    Latest::OnDevice((token != NOT_FINITE).then_some(token))
                }));
            }
            Logits::None => {
                self.run(feed, Wanted::Last(own), observer)?;
            }
        }
        Ok(Latest::Here)
    }

    fn run(
        &mut self,
        f: &Feed<'_>,
        wanted: Wanted<'_>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<Option<u32>> {
        let (mut there, state) = match self {
            _ if observer.is_some() && !matches!(self, Engine::Host(_)) => {
                return Err(Error::unsupported(
                    "products can be observed only where the CPU runs the model",
                ));
            }
            Engine::Device(state) => return state.feed(f, wanted),
            Engine::Host(state) => (None, state),
            Engine::Both(there, here) => (Some(there), here),
        };
        let logits = match wanted {
            Wanted::All(out) => Logits::All(out),
            Wanted::Last(out) => Logits::Last(out),
            Wanted::Greatest => Logits::None,
        };
        let layers = there.as_ref().map_or(0, |there| there.layers());
        let mut lower = |first: usize, x: &mut [f32]| match &mut there {
            Some(there) => there.lower(f, first, x),
            None => Ok(()),
        };
        f.rt.pool().team(|team| {
            let mut pass = Pass {
                rt: f.rt,
                architecture: &f.model.architecture,
                parameters: &f.model.parameters,
                team,
                cancellation: f.cancellation,
                observer: match &mut observer {
                    Some(observer) => Some(&mut **observer),
                    None => None,
                },
                lower: (layers > 0).then_some(Lower {
                    layers,
                    run: &mut lower,
                }),
            };
            pass.run(state, (f.first, f.length), f.ids, logits)
        })?;
        Ok(None)
    }

    /// Fetches the logits of the last token from the device; does nothing if the CPU computed them.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn fetch(&self, own: &mut [f32]) -> Result<()> {
        match self {
            Engine::Host(_) | Engine::Both(..) => Ok(()),
            Engine::Device(state) => state.logits(own),
        }
    }
}
