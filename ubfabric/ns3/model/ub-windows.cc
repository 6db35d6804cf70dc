// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-windows.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace ns3
{

namespace
{

/// Number of windows as long as nobody knows it.
constexpr uint64_t UNKNOWN = std::numeric_limits<uint64_t>::max();

} // namespace

UbWindows::UbWindows(UbEndpointProcess& endpoints,
                     std::vector<std::unique_ptr<UbPlaneParts>>& planes,
                     UbWorkers& workers,
                     std::function<void(UbArrived&)> take)
    : m_endpoints(endpoints),
      m_planes(planes),
      m_workers(workers),
      m_take(std::move(take))
{
    for (const auto& plane : planes)
    {
        m_nProcesses += static_cast<uint32_t>(plane->Parts().size());
    }
    m_processes = std::make_unique<Process[]>(m_nProcesses);
    uint32_t number = 0;
    for (const auto& plane : planes)
    {
        for (uint32_t part = 0; part < plane->Parts().size(); ++part, ++number)
        {
            m_processes[number].of = plane->Parts()[part];
            m_processes[number].parts = plane.get();
            m_processes[number].number = part;
        }
    }
    for (Window& window : m_windows)
    {
        window.sent.resize(m_nProcesses);
        window.arrived.resize(m_nProcesses);
        window.hops.resize(m_nProcesses);
    }
}

int64_t
UbWindows::Run(int64_t fromPs,
               int64_t barrierPs,
               uint64_t leastHops,
               const std::function<bool(uint64_t)>& goesOn)
{
    m_fromPs = fromPs;
    m_barrierPs = barrierPs;
    m_widthPs = m_endpoints.LookaheadPs() / WINDOWS;
    m_leastHops = leastHops;
    m_hops = 0;
    m_hopsOf.fill(0);
    m_goesOn = &goesOn;
    m_end = UNKNOWN;
    m_endpointsDone = 0;
    for (uint32_t number = 0; number < m_nProcesses; ++number)
    {
        m_processes[number].windows = 0;
    }
    for (const auto& plane : m_planes)
    {
        plane->Begin(fromPs);
    }
    m_workers.Run(
        [this](uint32_t task) { return task == 0 ? MoveEndpoints() : MoveProcess(task - 1); });
    for (const auto& plane : m_planes)
    {
        plane->End();
    }
    const uint64_t end = m_end;
    for (uint64_t window = end - std::min<uint64_t>(end, WINDOWS); window < end; ++window)
    {
        Take(At(window));
    }
    return At(end - 1).endPs;
}

UbProgress
UbWindows::MoveEndpoints()
{
    const uint64_t number = m_endpointsDone.load(std::memory_order_relaxed);
    Window& window = At(number); // and of the one WINDOWS before, which is taken over first
    if (number >= WINDOWS)
    {
        for (uint32_t process = 0; process < m_nProcesses; ++process)
        {
            if (m_processes[process].windows.load(std::memory_order_acquire) + WINDOWS <= number)
            {
                return UB_WAITS;
            }
        }
        Take(window);
        uint64_t& hops = m_hopsOf[number % WINDOWS];
        hops = std::accumulate(window.hops.begin(), window.hops.end(), uint64_t{0});
        m_hops += hops;
    }
    const int64_t beginPs = m_fromPs + static_cast<int64_t>(number) * m_widthPs;
    const int64_t targetPs = beginPs > m_barrierPs - m_widthPs ? m_barrierPs : beginPs + m_widthPs;
    window.endPs = m_endpoints.RunBefore(targetPs);
    for (uint32_t process = 0; process < m_nProcesses; ++process)
    {
        window.sent[process].swap(m_endpoints.Outgoing(process));
    }
    // all that is asked here follows from the numbers of windows
    const bool isIdle =
        number + 1 >= 2 * WINDOWS &&
        std::accumulate(m_hopsOf.begin(), m_hopsOf.end(), uint64_t{0}) < m_leastHops;
    const bool isLast = window.endPs < targetPs || targetPs == m_barrierPs || isIdle ||
                        m_endpoints.HasFailed() || !(*m_goesOn)(m_hops);
    if (isLast)
    {
        m_end.store(number + 1, std::memory_order_relaxed); // seen with the count below
    }
    m_endpointsDone.store(number + 1, std::memory_order_release);
    return isLast ? UB_OVER : UB_MOVED;
}

UbProgress
UbWindows::MoveProcess(uint32_t process)
{
    Process& own = m_processes[process];
    const uint64_t number = own.windows.load(std::memory_order_relaxed);
    if (m_endpointsDone.load(std::memory_order_acquire) <= number)
    {
        return UB_WAITS;
    }
    Window& window = At(number);
    if (!own.isInside)
    {
        own.isInside = true;
        own.hops = own.of->PacketHops();
        own.of->Accept(window.sent[process]);
    }
    if (const UbProgress progress = own.parts->Move(own.number, window.endPs); progress != UB_OVER)
    {
        return progress;
    }
    own.isInside = false;
    std::swap(window.arrived[process], own.of->Outbox());
    window.hops[process] = own.of->PacketHops() - own.hops;
    own.windows.store(number + 1, std::memory_order_release);
    return number + 1 == m_end.load(std::memory_order_relaxed) ? UB_OVER : UB_MOVED;
}

void
UbWindows::Take(Window& window)
{
    for (UbArrived& arrived : window.arrived)
    {
        m_take(arrived);
    }
}

} // namespace ns3
