// Queues that many use, tuned as their authors advise, on the server that ours is measured on. One line of JSON at the end:
// `{"per_second": …}` of a drain, `{"p50_ms": …}` of a latency.
import { Queue, Worker } from "bullmq";
import { Logger, run, runMigrations } from "graphile-worker";
import pg from "pg";

const [what, url, wanted] = process.argv.slice(2);
const count = Number(wanted);
const TASK = "nothing";
const silent = new Logger(() => () => {});

/** Seconds from now until `count` calls of what is given to `start`. */
async function timed(start) {
  const began = performance.now();
  await new Promise((resolve, reject) => {
    let done = 0;
    start(() => {
      done += 1;
      if (done === count) resolve();
    }).catch(reject);
  });
  return (performance.now() - began) / 1000;
}

async function drainGraphile() {
  const pool = new pg.Pool({ connectionString: url, max: 10 });
  await runMigrations({ pgPool: pool, logger: silent });
  await pool.query(
    `SELECT graphile_worker.add_jobs(array(
       SELECT row($1::text, '{}'::json, null, null, null, null, null, null)::graphile_worker.job_spec FROM generate_series(1, $2::int)
     ))`,
    [TASK, count],
  );
  let runner;
  const seconds = await timed(async (done) => {
    runner = await run({
      pgPool: pool,
      noHandleSignals: true,
      noPreparedStatements: false,
      taskList: { [TASK]: async () => done() },
      // https://worker.graphile.org/docs/performance: a local queue of 500, and completions in batches.
      preset: {
        worker: {
          concurrentJobs: 24,
          localQueue: { size: 500 },
          completeJobBatchDelay: 0,
          failJobBatchDelay: 0,
          getQueueNameBatchDelay: 0,
        },
      },
      logger: silent,
    });
  });
  await runner.stop();
  await pool.end();
  return { per_second: count / seconds };
}

function redis() {
  const { hostname, port, username, password } = new URL(url);
  return { host: hostname, port: Number(port), username, password, maxRetriesPerRequest: null };
}

async function drainBullmq() {
  const connection = redis();
  const queue = new Queue(TASK, { connection });
  await queue.obliterate({ force: true });
  const jobs = Array.from({ length: count }, () => ({
    name: TASK,
    data: {},
    opts: { removeOnComplete: true, removeOnFail: true },
  }));
  await queue.addBulk(jobs);
  let worker;
  const seconds = await timed(async (done) => {
    worker = new Worker(TASK, async () => {}, { connection, concurrency: 100 });
    worker.on("completed", done);
  });
  await worker.close();
  await queue.close();
  return { per_second: count / seconds };
}

async function latencyBullmq() {
  const connection = redis();
  const queue = new Queue(TASK, { connection });
  await queue.obliterate({ force: true });
  let started;
  const worker = new Worker(TASK, async () => started(performance.now()), { connection });
  await worker.waitUntilReady();
  const latencies = [];
  for (let number = 0; number < count; number += 1) {
    const start = new Promise((resolve) => (started = resolve));
    const began = performance.now();
    await queue.add(TASK, {}, { removeOnComplete: true, removeOnFail: true });
    latencies.push((await start) - began);
  }
  await worker.close();
  await queue.close();
  latencies.sort((a, b) => a - b);
  return { p50_ms: latencies[Math.floor(latencies.length / 2)] };
}

const measures = {
  "drain-graphile": drainGraphile,
  "drain-bullmq": drainBullmq,
  "latency-bullmq": latencyBullmq,
};
const result = await measures[what]();
console.log(JSON.stringify(result));
process.exit(0);
