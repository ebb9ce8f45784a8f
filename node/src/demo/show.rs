//! How the story is shown: a bar for the step that runs on a terminal, plain lines elsewhere, and the times of
//! all steps at the end.

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub(super) struct Show {
    terminal: bool,
    start: Instant,
    times: Mutex<Vec<(String, Duration)>>,
}

pub(super) struct Step<'a> {
    show: &'a Show,
    title: String,
    start: Instant,
    bar: ProgressBar,
}

impl Show {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, start: Instant::now(), times: Mutex::default() }
    }

    /// Nobody has to listen.
    pub(super) fn line(&self, text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    pub(super) fn step(&self, title: &str) -> Step<'_> {
        let bar = if self.terminal {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{spinner} {wide_msg} {elapsed}"));
            bar.set_message(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        } else {
            self.line(&format!("        {title} ..."));
            ProgressBar::hidden()
        };
        Step { show: self, title: title.into(), start: Instant::now(), bar }
    }

    pub(super) fn summary(&self) {
        self.line("\nSUMMARY");
        for (title, time) in self.times.lock().iter() {
            self.line(&format!("{:>7.2} s  {title}", time.as_secs_f64()));
        }
        self.line(&format!("{:>7.2} s  in all", self.start.elapsed().as_secs_f64()));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Step<'_> {
    /// The step is `total` bytes of work.
    pub(super) fn expect(&self, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(0);
        if total > 0 {
            self.bar.set_style(style("{spinner} {msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}"));
        }
    }

    /// So many bytes more are done.
    pub(super) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    pub(super) fn done(self, result: &str) {
        let time = self.start.elapsed();
        let tail = if result.is_empty() { String::new() } else { format!(": {result}") };
        self.bar.finish_and_clear();
        self.show.line(&format!("{:>5.2} s {}{tail}", time.as_secs_f64(), self.title));
        self.show.times.lock().push((self.title.clone(), time));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
