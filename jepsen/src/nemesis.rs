//! Does harm to one node at a time, and puts it right again.

use crate::random::Random;
use hfcache_tests::{Cluster, netns};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longest span that can be asked for.
const SPAN_MAX: Duration = Duration::from_secs(300);

/// What can happen to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL; later a start.
    Kill,
    /// SIGSTOP; later SIGCONT.
    Pause,
    /// SIGSTOP and SIGCONT again and again, each for less than a read lease: it goes on with what it had, while
    /// the others have gone on without it.
    Stutter,
    /// Its cable is pulled; later put back.
    Cut,
}

impl Fault {
    /// All that are possible here: cables need network namespaces.
    pub fn possible() -> Vec<Self> {
        let mut all = vec![Self::Kill, Self::Pause, Self::Stutter];
        if netns::missing().is_none() {
            all.push(Self::Cut);
        }
        all
    }

    fn strike(self, cluster: &mut Cluster, node: usize) {
        match self {
            Self::Kill => cluster.node_mut(node).kill(),
            Self::Pause | Self::Stutter => cluster.node(node).pause(),
            Self::Cut => cluster.cut(node),
        }
    }

    fn undo(self, cluster: &mut Cluster, node: usize) {
        match self {
            Self::Kill => cluster.node_mut(node).start(),
            Self::Pause | Self::Stutter => cluster.node(node).resume(),
            Self::Cut => cluster.heal(node),
        }
    }

    /// Waits as long as the fault shall last.
    fn last(self, cluster: &Cluster, node: usize, outage: Duration, random: &mut Random) {
        let start = Instant::now();
        while self == Self::Stutter && start.elapsed() < outage {
            thread::sleep(Duration::from_millis(5 + random.below(60) as u64));
            cluster.node(node).resume();
            thread::sleep(Duration::from_millis(5 + random.below(30) as u64));
            cluster.node(node).pause();
        }
        thread::sleep(outage.saturating_sub(start.elapsed()));
    }
}

/// How often each fault struck: a leader, or another node.
pub type Struck = BTreeMap<(Fault, bool), usize>;

/// A cluster whose cables can be pulled, where that is possible.
pub fn cluster(name: &str, nodes: usize) -> Cluster {
    match netns::missing() {
        None => Cluster::start_in_namespaces(name, nodes),
        Some(why) => {
            eprintln!("SKIPPED pulling cables: {why}");
            Cluster::start(name, nodes)
        }
    }
}

/// Lets clients work while it strikes for `HFCACHE_JEPSEN_SECONDS`, or as long as every fault takes once, and has
/// them stop then, also when it fails itself.
pub fn amid<'a>(
    cluster: &mut Cluster,
    restarts: &[AtomicU64],
    random: &mut Random,
    stop: &AtomicBool,
    clients: Vec<Box<dyn FnOnce() + Send + 'a>>,
) -> Struck {
    let seconds = std::env::var("HFCACHE_JEPSEN_SECONDS").ok().and_then(|s| s.parse().ok());
    let span = Duration::from_secs(seconds.unwrap_or(0)).min(SPAN_MAX);
    let struck = thread::scope(|scope| {
        for client in clients {
            scope.spawn(client);
        }
        let struck = catch_unwind(AssertUnwindSafe(|| rampage(cluster, restarts, span, random)));
        stop.store(true, Ordering::Relaxed);
        struck
    });
    let struck = struck.unwrap_or_else(|panic| resume_unwind(panic));
    // A run in which nothing happened proves nothing.
    for fault in Fault::possible() {
        assert!(struck.contains_key(&(fault, true)) && struck.contains_key(&(fault, false)), "{struck:?}");
    }
    struck
}

/// Strikes for at least `span`, each possible fault at least once against a leader and once against another
/// node, and returns how often each struck. At the end nothing is broken any more. `restarts` of a node is odd
/// while it is dead.
fn rampage(cluster: &mut Cluster, restarts: &[AtomicU64], span: Duration, random: &mut Random) -> Struck {
    let mut done = Struck::new();
    let mut plan: Vec<(Fault, bool)> =
        Fault::possible().into_iter().flat_map(|f| [(f, true), (f, false)]).collect();
    // Nodes that are a little apart are what a strict judgement needs, and they are so by chance only.
    plan.extend([(Fault::Stutter, true), (Fault::Stutter, false)]);
    let start = Instant::now();
    while start.elapsed() < span || !plan.is_empty() {
        let next = if plan.is_empty() {
            (*random.pick(&Fault::possible()), random.below(2) == 0)
        } else {
            plan.swap_remove(random.below(plan.len()))
        };
        let leader = cluster.leader();
        let others: Vec<usize> = (0..cluster.len()).filter(|n| *n != leader).collect();
        let victim = if next.1 { leader } else { *random.pick(&others) };
        // Between a blink and longer than an election.
        let outage = Duration::from_millis(300 + random.below(2_500) as u64);
        println!(
            "  {:5.1} s: {:?} node {victim}{} for {outage:?}",
            start.elapsed().as_secs_f64(),
            next.0,
            if next.1 { ", the leader," } else { "" }
        );
        let count_restart = || {
            if next.0 == Fault::Kill {
                restarts[victim].fetch_add(1, Ordering::SeqCst);
            }
        };
        count_restart();
        next.0.strike(cluster, victim);
        next.0.last(cluster, victim, outage, random);
        next.0.undo(cluster, victim);
        count_restart();
        *done.entry(next).or_default() += 1;
        thread::sleep(Duration::from_millis(random.below(1_200) as u64));
    }
    done
}
