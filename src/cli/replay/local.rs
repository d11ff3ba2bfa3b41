//! A policy in this process, asked as a server would be.

use anyhow::Result;

use super::Infer;
use crate::cli::engine::{self, Engine};
use crate::cli::output::Mouth;
use crate::serve::request::{Request, Timing};
use crate::serve::tree::Tree;

/// A checkpoint behind a preset's policy.
#[derive(Debug)]
pub(super) struct Local {
    engine: Engine,
}

impl Local {
    pub(super) fn open(args: &engine::Args, mouth: &Mouth) -> Result<Self> {
        Ok(Local { engine: Engine::open(args, mouth)? })
    }
}

impl Infer for Local {
    fn infer(&mut self, message: &Tree) -> Result<Result<Tree, String>> {
        let answer = Request::parse(message.clone()).and_then(|request| self.engine.infer_one(request));
        Ok(answer.map(|answer| answer.message(&Timing::default(), true)).map_err(|refusal| refusal.to_string()))
    }

    fn name(&self) -> String {
        format!("{} in this process", self.engine.preset().name)
    }
}
