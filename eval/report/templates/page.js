"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  root.classList.add("js");
  all(".theme, .filter, .tools, .slide, .together").forEach((element) => { element.hidden = false; });

  // Theme: what the system says, unless the reader says otherwise.
  const themes = ["auto", "light", "dark"];
  const toggle = document.querySelector(".theme");
  const remember = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("labelbandit-theme");
      localStorage.setItem("labelbandit-theme", value);
    } catch { /* no storage in private windows */ }
    return null;
  };
  const setTheme = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    toggle.textContent = `Theme: ${theme}`;
  };
  let theme = themes.includes(remember()) ? remember() : "auto";
  setTheme(theme);
  toggle.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    setTheme(theme);
    remember(theme);
  });

  // Sections: a link to one opens it, and printing opens all.
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", openTarget);
  for (const link of all("nav a")) link.addEventListener("click", () => setTimeout(openTarget));
  openTarget();
  addEventListener("beforeprint", () => all("details").forEach((item) => { item.open = true; }));

  // Wide tables: say so, and fade the edge until the end is reached.
  const edges = new ResizeObserver((entries) => entries.forEach((entry) => showEdge(entry.target)));
  const showEdge = (box) => {
    const left = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("more", left > 1);
    box.previousElementSibling.classList.toggle("needed", box.scrollWidth > box.clientWidth + 1);
  };
  for (const box of all(".scroll")) {
    edges.observe(box);
    box.addEventListener("scroll", () => showEdge(box), { passive: true });
  }

  // Tables: a click on a heading sorts, a second click reverses the order; empty cells are always last.
  const key = (row, column) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
  };
  const sortBy = (table, column) => {
    const heads = table.tHead.rows[0].cells;
    const descending = heads[column].ariaSort === "ascending";
    for (const head of heads) head.ariaSort = "none";
    heads[column].ariaSort = descending ? "descending" : "ascending";
    const rows = Array.from(table.tBodies[0].rows);
    rows.sort((first, second) => {
      const [a, b] = [key(first, column), key(second, column)];
      if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
      return descending ? -compare(a, b) : compare(a, b);
    });
    table.tBodies[0].append(...rows);
  };
  for (const table of all("table.data")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sortBy(table, column));
      head.replaceChildren(button);
      head.ariaSort = "none";
    });
  }

  // Filters: what is left holds every word.
  const filter = (input, items, noun) => {
    const texts = items.map((item) => item.textContent.toLocaleLowerCase());
    const count = input.parentElement.querySelector(".count");
    const apply = () => {
      const words = input.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      items.forEach((item, place) => {
        item.hidden = !words.every((word) => texts[place].includes(word));
        shown += item.hidden ? 0 : 1;
      });
      const total = `${items.length} ${noun}${items.length === 1 ? "" : "s"}`;
      count.textContent = words.length ? `${shown} of ${total}` : total;
    };
    input.addEventListener("input", apply);
    apply();
  };
  for (const input of all(".filter input")) {
    filter(input, Array.from(document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows), "row");
  }
  const audits = all("details.audit");
  if (audits.length) {
    const input = document.getElementById("evidence-filter");
    const heads = audits.map((audit) => audit.querySelector("summary"));
    filter(input, heads, "audit");
    const regimes = all("details.regime");
    input.addEventListener("input", () => {
      audits.forEach((audit, k) => { audit.hidden = heads[k].hidden; });
      for (const regime of regimes) {
        regime.hidden = !all(".audit:not([hidden])", regime).length;
        if (input.value.trim()) regime.open = true;
      }
    });
    const unfold = document.querySelector(".unfold");
    unfold.addEventListener("click", () => {
      const open = unfold.getAttribute("aria-pressed") !== "true";
      for (const item of [...regimes, ...audits]) item.open = open;
      unfold.setAttribute("aria-pressed", String(open));
      unfold.textContent = open ? "Close all" : "Open all";
    });
  }

  // Plots: the dialog gives the focus back by itself.
  const viewer = document.getElementById("viewer");
  const large = viewer.querySelector("img");
  const canvas = viewer.querySelector(".canvas");
  const actual = viewer.querySelector(".actual");
  const setNatural = (natural) => {
    canvas.classList.toggle("natural", natural);
    actual.setAttribute("aria-pressed", String(natural));
  };
  for (const button of all(".zoom")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      large.src = image.src;
      large.alt = image.alt;
      viewer.querySelector("h2").textContent = button.closest("figure").querySelector("figcaption").textContent;
      setNatural(false);
      viewer.showModal();
    });
  }
  actual.addEventListener("click", () => setNatural(actual.getAttribute("aria-pressed") !== "true"));
  viewer.querySelector(".close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

  // Sliders: the attacked image over the clean one; half opaque is half the perturbation.
  const blend = (slider) => {
    slider.closest(".example").querySelector(".attacked").style.opacity = slider.value / 100;
    slider.setAttribute("aria-valuetext", `${slider.value} % of the perturbation`);
  };
  for (const slider of all(".blend")) {
    slider.addEventListener("input", () => blend(slider));
    blend(slider);
  }
  for (const master of all(".together .all")) {
    master.addEventListener("input", () => {
      for (const slider of all(".blend", master.closest(".gallery"))) {
        slider.value = master.value;
        blend(slider);
      }
    });
  }
})();
