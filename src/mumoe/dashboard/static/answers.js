// The server's answer to a question; while a newer question is open, the part that shows the answer is busy.
//
// Every part of the page that shows an answer sets aria-busy: it is true from the click that requests something
// else until the result is drawn. Screen readers and tests wait for it.

import { useEffect, useState } from "/vendor/hooks.js";

const NOTHING = { question: null, found: null, problem: "" };

// `ask` is called whenever `question`, a text, changes; answers to an older question are dropped. Until the new answer
// arrives the old one stays in `found`, unless `fresh` removes it.
export function useAnswer(question, ask, { fresh = false } = {}) {
  const [answered, setAnswered] = useState(NOTHING);
  useEffect(() => {
    let current = true;
    const put = (part) => current && setAnswered((old) => ({ ...old, question, ...part }));
    ask().then((found) => put({ found, problem: "" }), (error) => put({ problem: error.message }));
    return () => {
      current = false;
    };
  }, [question]);
  const busy = answered.question !== question;
  return { found: busy && fresh ? null : answered.found, problem: busy ? "" : answered.problem, busy };
}
