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
                     std::vector<std::unique_ptr<UbPlane>>& planes,
                     UbWorkers& workers,
                     std::function<void(UbArrived&)> take)
    : m_endpoints(endpoints),
      m_planes(planes),
      m_workers(workers),
      m_take(std::move(take)),
      m_planesDone(std::make_unique<Count[]>(planes.size()))
{
    for (Window& window : m_windows)
    {
        window.sent.resize(planes.size());
        window.arrived.resize(planes.size());
        window.hops.resize(planes.size());
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
    m_endpointsDone.windows = 0;
    for (size_t plane = 0; plane < m_planes.size(); ++plane)
    {
        m_planesDone[plane].windows = 0;
    }
    m_workers.Run(
        [this](uint32_t task) { return task == 0 ? MoveEndpoints() : MovePlane(task - 1); });
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
    const uint64_t number = m_endpointsDone.windows.load(std::memory_order_relaxed);
    Window& window = At(number); // and of the one WINDOWS before, which is taken over first
    if (number >= WINDOWS)
    {
        for (size_t plane = 0; plane < m_planes.size(); ++plane)
        {
            if (m_planesDone[plane].windows.load(std::memory_order_acquire) + WINDOWS <= number)
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
    for (uint32_t plane = 0; plane < m_planes.size(); ++plane)
    {
        window.sent[plane].swap(m_endpoints.Outgoing(plane));
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
    m_endpointsDone.windows.store(number + 1, std::memory_order_release);
    return isLast ? UB_OVER : UB_MOVED;
}

UbProgress
UbWindows::MovePlane(uint32_t plane)
{
    std::atomic<uint64_t>& done = m_planesDone[plane].windows;
    const uint64_t number = done.load(std::memory_order_relaxed);
    if (m_endpointsDone.windows.load(std::memory_order_acquire) <= number)
    {
        return UB_WAITS;
    }
    Window& window = At(number);
    UbPlane& of = *m_planes[plane];
    const uint64_t hops = of.PacketHops();
    of.Accept(window.sent[plane]);
    of.RunBefore(window.endPs);
    std::swap(window.arrived[plane], of.Outbox());
    window.hops[plane] = of.PacketHops() - hops;
    done.store(number + 1, std::memory_order_release);
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
