//! The words that a robot is told: from the task that a dataset gives a frame, or a sentence for want of another.
//!
//! Source: openpi 15a9616, transforms.py (PromptFromLeRobotTask, InjectDefaultPrompt). Invariant: a prompt that is there
//! is never replaced by the default; a task replaces whatever prompt the dataset had. Neither has a way back.

use std::collections::BTreeMap;

use super::array::Values;
use super::record::{Fault, Record};
use super::step::Step;

/// The key of the words.
const PROMPT: &str = "prompt";
/// The key of a frame's task.
const TASK_INDEX: &str = "task_index";
/// So many tasks are named to someone whose index is none of them.
const SHOWN_TASKS: usize = 8;

/// `prompt` from `task_index`.
#[derive(Debug, Clone)]
pub struct PromptFromTask {
    /// The dataset's sentences.
    pub tasks: BTreeMap<i64, String>,
}

impl Step for PromptFromTask {
    fn name(&self) -> &'static str {
        "prompt-from-task"
    }

    fn describe(&self) -> String {
        match self.tasks.len() {
            1 => "prompt = the dataset's one task".to_owned(),
            n => format!("prompt = the one of the dataset's {n} tasks that task_index names"),
        }
    }

    fn reads(&self) -> Vec<String> {
        vec![TASK_INDEX.to_owned()]
    }

    fn writes(&self) -> Vec<String> {
        vec![PROMPT.to_owned()]
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let array = record.array(TASK_INDEX)?;
        let index = match &array.values {
            Values::I64(x) if x.len() == 1 => x[0],
            Values::I32(x) if x.len() == 1 => x[0].into(),
            Values::U8(x) if x.len() == 1 => x[0].into(),
            _ => {
                return Err(Fault::Shape {
                    key: TASK_INDEX.to_owned(),
                    expected: "one whole number".to_owned(),
                    found: array.to_string(),
                    hint_text: String::new(),
                });
            }
        };
        let Some(task) = self.tasks.get(&index) else {
            let known: Vec<String> = self.tasks.keys().take(SHOWN_TASKS).map(i64::to_string).collect();
            let more = if self.tasks.len() > SHOWN_TASKS { ", …" } else { "" };
            let what = format!("the dataset has no task {index}; it has {}{more}", known.join(", "));
            return Err(Fault::Wrong { key: TASK_INDEX.to_owned(), what });
        };
        record.put_text(PROMPT, task.clone());
        Ok(())
    }
}

/// `prompt`, where there is none.
#[derive(Debug, Clone)]
pub struct InjectDefaultPrompt {
    /// The sentence; `None` leaves the record as it is.
    pub prompt: Option<String>,
}

impl Step for InjectDefaultPrompt {
    fn name(&self) -> &'static str {
        "inject-default-prompt"
    }

    fn describe(&self) -> String {
        match &self.prompt {
            Some(prompt) => format!("prompt = {prompt:?} where there is none"),
            None => "there is no default prompt: the record must have one".to_owned(),
        }
    }

    fn reads(&self) -> Vec<String> {
        vec![PROMPT.to_owned()]
    }

    fn writes(&self) -> Vec<String> {
        self.prompt.iter().map(|_| PROMPT.to_owned()).collect()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        if let Some(prompt) = self.prompt.as_ref().filter(|_| !record.has(PROMPT)) {
            record.put_text(PROMPT, prompt.clone());
        }
        Ok(())
    }
}
