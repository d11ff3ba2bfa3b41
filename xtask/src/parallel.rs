//! A list of jobs, several at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail};

/// Does `work` on every job, `threads` at a time, in order of the list; the first error stops the rest.
pub(crate) fn side_by_side<T: Sync>(threads: usize, jobs: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(job) {
                next.store(jobs.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(jobs.len())).map(|_| scope.spawn(worker)).collect();
        let mut result = Ok(());
        for worker in workers {
            let ended = worker.join().unwrap_or_else(|_| bail!("a thread panicked"));
            result = result.and(ended);
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[test]
    fn the_first_error_stops_the_rest() {
        let done = AtomicUsize::new(0);
        let jobs: Vec<usize> = (0..1000).collect();
        let result = side_by_side(1, &jobs, |job| {
            done.fetch_add(1, Ordering::Relaxed);
            ensure!(*job != 10, "job 10");
            Ok(())
        });
        assert_eq!(result.unwrap_err().to_string(), "job 10");
        assert_eq!(done.load(Ordering::Relaxed), 11);
    }
}
