//! The model's thread: takes what waits, runs the model, hands the answers back.
//!
//! Invariant: everyone who was taken hears of it, whatever the policy does.

use std::time::Instant;

use super::queue::{Batching, Done, Job};
use super::room::{Room, internal};
use crate::serve::policy::Policy;

/// Until the queue is closed and empty.
pub(super) fn run<P: Policy>(room: &Room<P>) {
    let batching = Batching { most: room.settings.max_batch.max(1), wait: room.settings.max_wait };
    room.metrics.device_memory(device_memory(room));
    // A policy that panics here has its requests one by one.
    let together = |first: &P::Ready, other: &P::Ready| {
        room.caught("together", || room.policy.together(first, other)).unwrap_or(false)
    };
    while let Some(batch) = room.queue.take(batching, together) {
        infer(room, batch);
    }
}

fn infer<P: Policy>(room: &Room<P>, batch: Vec<Job<P::Ready>>) {
    let size = batch.len();
    let began = Instant::now();
    let (mut ready, mut replies) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for job in batch {
        ready.push(job.ready);
        replies.push((job.reply, began.saturating_duration_since(job.queued)));
    }
    let answers = room.caught("infer", || room.policy.infer(ready));
    let model = began.elapsed();
    room.metrics.ran(model, size, device_memory(room));
    let answers = match answers {
        Ok(answers) if answers.len() == size => answers,
        Ok(answers) => {
            let detail = format!("the policy gave {} answers to {size} observations", answers.len());
            vec![Err(internal(detail)); size]
        }
        Err(refusal) => vec![Err(refusal); size],
    };
    for ((reply, queue), answer) in replies.into_iter().zip(answers) {
        // Whoever went away while the model ran needs no answer.
        let _ = reply.send(Done { answer, queue, model, batch: size });
    }
}

fn device_memory<P: Policy>(room: &Room<P>) -> Option<u64> {
    room.caught("device_memory_bytes", || room.policy.device_memory_bytes()).ok().flatten()
}
