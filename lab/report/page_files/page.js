'use strict';
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById('figures').textContent);
  const charts = [...document.querySelectorAll('.chart')];
  const boxes = [...document.querySelectorAll('#filter input')];

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Text, grid and target lines in the colours of the page's theme.
  const themed = (layout) => {
    const axis = (old) => ({
      ...old,
      color: css('--faint'),
      gridcolor: css('--line'),
      linecolor: css('--line'),
      spikecolor: css('--faint'),
    });
    return {
      ...layout,
      font: { family: 'system-ui, sans-serif', size: 11, color: css('--text') },
      hoverlabel: { bgcolor: css('--panel'), bordercolor: css('--line'), font: { color: css('--text') } },
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      shapes: (layout.shapes || []).map((shape) => ({
        ...shape,
        line: { ...shape.line, color: css('--text') },
      })),
    };
  };

  // A narrow screen has no room for names beside a plot's area.
  const isNarrow = () => window.innerWidth < 600;

  const hiddenNames = () =>
    new Set(boxes.filter((box) => !box.checked).map((box) => box.value));

  const shownTraces = (traces) => {
    const hidden = hiddenNames();
    const rows = (trace) => {
      const kept = (_, i) => !hidden.has(trace.meta[i]);
      const [y, z, text] = [trace.y, trace.z, trace.text].map((all) => all.filter(kept));
      return { ...trace, y, z, text };
    };
    return traces
      .filter((trace) => !hidden.has(trace.legendgroup))
      .map((trace) => (trace.meta ? rows(trace) : trace));
  };

  const draw = (chart) => {
    const figure = figures[chart.dataset.figure];
    const layout = themed(figure.layout);
    if (isNarrow()) {
      layout.yaxis.tickfont = { size: 9 };
      layout.xaxis.tickfont = { size: 9 };
    }
    Plotly.react(chart, shownTraces(figure.data), layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
    chart.dataset.drawn = 'true';
  };

  // One chart a task, from the top: dozens in one would freeze a phone.
  let pass = 0;
  const redraw = () => {
    const mine = ++pass;
    const waiting = [...charts];
    const next = () => {
      if (mine !== pass || !waiting.length) return;
      draw(waiting.shift());
      setTimeout(next);
    };
    next();
  };

  const filter = () => {
    const hidden = hiddenNames();
    for (const row of document.querySelectorAll('tbody tr')) {
      row.hidden = hidden.has(row.dataset.submission);
    }
    redraw();
  };
  boxes.forEach((box) => box.addEventListener('change', filter));
  // All shown: hide all; otherwise show all.
  document.getElementById('all').addEventListener('click', () => {
    const show = boxes.some((box) => !box.checked);
    boxes.forEach((box) => { box.checked = show; });
    filter();
  });

  const sort = (header) => {
    const index = header.cellIndex;
    const isNumber = header.classList.contains('number');
    const old = header.getAttribute('aria-sort');
    const order = old === 'ascending' ? 'descending' : 'ascending';
    const sign = order === 'ascending' ? 1 : -1;
    const body = header.closest('table').tBodies[0];
    const value = (row) => row.cells[index].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      // Missing values come last in either order.
      if (x === '' || y === '') return (x === '') - (y === '');
      return sign * (isNumber ? x - y : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(compare));
    for (const other of header.parentNode.cells) {
      other.setAttribute('aria-sort', other === header ? order : 'none');
    }
  };
  for (const header of document.querySelectorAll('th')) {
    header.querySelector('button').addEventListener('click', () => sort(header));
  }

  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const setTheme = (isDark) => {
    root.classList.toggle('dark', isDark);
    redraw();
  };
  setTheme(dark.matches);
  dark.addEventListener('change', (event) => setTheme(event.matches));
  document.getElementById('theme').addEventListener('click', () =>
    setTheme(!root.classList.contains('dark')));
})();
